import asyncio
import json

from httpx import ReadTimeout, Request, Response

from sagafence.testing import Call, ProviderStrikes


class Airline:
    def __init__(self) -> None:
        self.seats: dict[str, str] = {}
        self._first_answers: dict[str, tuple[int, object]] = {}
        self.strikes: ProviderStrikes[Request, Response] = ProviderStrikes(
            call=lambda request: Call(request.method, request.url.path, request.headers.get("Idempotency-Key")),
            answer=lambda status, words: Response(status, text=words),
        )
        self._struck = self.strikes.around(self._answer)

    async def __call__(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(1):
                response = await self._struck(request)
        except TimeoutError:
            raise ReadTimeout("no answer came", request=request) from None
        response.request = request
        return response

    async def _answer(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.seats.pop(request.url.path.removeprefix("/seats/"), None)
            return Response(204)
        key = request.headers["Idempotency-Key"]
        if key not in self._first_answers:
            self._first_answers[key] = self._book(**json.loads(request.content))
        status, content = self._first_answers[key]
        return Response(status, json=content)

    def _book(self, flight: str, reference: str) -> tuple[int, object]:
        if flight == "sold out":
            return 422, "sold out"
        seat = len(self._first_answers) + 1
        self.seats[str(seat)] = reference
        return 201, {"id": seat}
