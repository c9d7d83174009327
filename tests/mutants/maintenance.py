"""Faults in the sweep: it must find every lost order, and touch no other."""

from tests.mutants.killers import BULK, MAINTENANCE, PLANS, REPORTS, RESTORED, SECOND_RUN, at
from tests.mutants.mutant import Mutant

_FILE = "workflows/maintenance.py"
_SEARCH = "activities/sweep.py"
_SAGAS = "activities/sagas.py"

MUTANTS = (
    Mutant(
        "sweep-takes-a-new-workflow-id",
        "an order whose saga is alive would get a second one",
        _SAGAS,
        "            id=checkout_workflow_id(order.order_id),\n",
        '            id=checkout_workflow_id(order.order_id) + "-repair",\n',
        at(MAINTENANCE, "test_running_and_stuck_sagas_are_left_alone_and_counted"),
    ),
    Mutant(
        "sweep-terminates-running-sagas",
        "each sweep would interrupt every slow order",
        _SAGAS,
        "= WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY\n",
        "= WorkflowIDReusePolicy.TERMINATE_IF_RUNNING\n",
        at(MAINTENANCE, "test_running_and_stuck_sagas_are_left_alone_and_counted"),
    ),
    Mutant(
        "sweep-starts-no-second-run",
        "a saga that was terminated would never be repaired (P8)",
        _SAGAS,
        "= WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY\n",
        "= WorkflowIDReusePolicy.REJECT_DUPLICATE\n",
        at(
            MAINTENANCE,
            "test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled[charge_payment-before-True]",
        ),
    ),
    Mutant(
        "sweep-believes-temporal",
        "an order that the database says is open would stay so, because Temporal says that it ended well",
        _FILE,
        "StartInput(completed, even_completed=True)",
        "StartInput(completed)",
        at(RESTORED, "test_an_order_that_temporal_has_completed_is_parked_by_the_sweep_and_not_refunded[ship_order]"),
    ),
    Mutant(
        "sweep-starts-children",
        "a sweep that closes in the instant of a start would leave a run without a first task, and its order with no "
        "saga that works",
        _FILE,
        "        refused = await _maintain(Sagas.start_sagas, asked, "
        'f"Start the sagas of {len(asked.orders)} orders")\n',
        "        refused: list[CheckoutInput] = []\n"
        "        for order in asked.orders:\n"
        "            await workflow.start_child_workflow(\n"
        "                policies.CHECKOUT_WORKFLOW,\n"
        "                order,\n"
        "                id=policies.checkout_workflow_id(order.order_id),\n"
        "                parent_close_policy=workflow.ParentClosePolicy.ABANDON,\n"
        "            )\n",
        at(MAINTENANCE, "test_the_sagas_that_a_sweep_starts_are_nobodys_children"),
    ),
    Mutant(
        "sweep-counts-what-was-refused",
        "each sweep would report as repaired what is alive",
        _FILE,
        "            if order.order_id not in names:\n",
        "            if order.order_id:\n",
        at(MAINTENANCE, "test_running_and_stuck_sagas_are_left_alone_and_counted"),
    ),
    Mutant(
        "sweep-reads-one-page",
        "orders behind the first page would starve",
        _FILE,
        "            if page.next_at is None:\n",
        "            if page.next_at is None or page.orders:\n",
        at(MAINTENANCE, "test_more_orders_than_a_page_are_all_started"),
    ),
    Mutant(
        "sweep-forgets-its-report",
        "a long sweep would tell of its last pages alone",
        _FILE,
        "                workflow.continue_as_new(SweepInput(sweep.idle_seconds, *place, report))",
        "                workflow.continue_as_new(SweepInput(sweep.idle_seconds, *place))",
        at(SECOND_RUN, "test_a_sweep_of_more_pages_than_one_run_takes_reaches_the_last_order"),
    ),
    Mutant(
        "sweep-takes-orders-that-move",
        "an order would be repaired while it is on its way",
        _SEARCH,
        "           AND (status = 'pending' OR updated_at <= now() - CAST(:idle_for AS interval))\n",
        "           AND CAST(:idle_for AS interval) IS NOT NULL\n",
        at(MAINTENANCE, "test_an_order_that_moved_a_moment_ago_is_not_looked_at"),
    ),
    Mutant(
        "sweep-cuts-its-page-last",
        "each page would read all that is unfinished, and a database with a large backlog all lines ever ordered",
        _SEARCH,
        "         ORDER BY updated_at, order_id LIMIT :limit\n    )\n",
        "         ORDER BY updated_at, order_id OFFSET 0 * :limit\n    )\n",
        at(PLANS, "test_the_sweep_and_the_log_read_by_index_and_no_more_than_they_need"),
    ),
    Mutant(
        "sweep-overlooks-stuck-orders",
        "a stuck order whose saga was terminated would wait for ever",
        _SEARCH,
        "'paid', 'unwinding', 'stuck')",
        "'paid', 'unwinding')",
        at(MAINTENANCE, "test_a_stuck_order_whose_saga_was_terminated_is_finished"),
    ),
    Mutant(
        "sweep-buys-what-was-abandoned",
        "a lost order would be carried on days later",
        _SEARCH,
        "row.status != OrderStatus.PENDING, review_reason\n",
        'row.status == "nowhere", review_reason\n',
        at(
            MAINTENANCE,
            "test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled[charge_payment-before-True]",
        ),
    ),
    Mutant(
        "sweep-trusts-changed-lines",
        "a repair under another fingerprint would undo nothing, and close",
        _SEARCH,
        "            if row.fingerprint not in {None, order.fingerprint}:\n",
        "            if not row.customer:\n",
        at(SECOND_RUN, "test_an_order_whose_lines_changed_after_a_saga_took_it_is_reported_and_left_alone"),
    ),
    Mutant(
        "one-malformed-order-stops-the-sweep",
        "a typo in one order by hand would strand all others",
        _SEARCH,
        "            except InvalidInput as problem:\n                malformed.append",
        "            except KeyError as problem:\n                malformed.append",
        at(MAINTENANCE, "test_an_order_that_no_saga_can_take_is_reported_and_does_not_stop_the_others"),
    ),
    Mutant(
        "sweep-report-is-as-long-as-its-names",
        "a sweep that meets many orders with long ids in another script would fail for ever: its report is too large",
        "domain/sweep.py",
        "len(name) * (1 if name.isascii() else 12) + 4",
        "len(name)",
        at(REPORTS, "test_every_order_is_counted_and_a_report_fits_into_what_temporal_takes[longest]"),
    ),
    Mutant(
        "sweep-report-names-everybody",
        "a sweep that meets a hundred thousand orders would fail for ever: its report is too large",
        "domain/sweep.py",
        "_LISTED = 1_000\n",
        "_LISTED = 1_000_000\n",
        at(REPORTS, "test_every_order_is_counted_and_a_report_fits_into_what_temporal_takes[short]"),
    ),
    Mutant(
        "repair-looks-like-a-start",
        "whoever looks at a repair in the UI would wonder why it buys nothing",
        _SAGAS,
        '"Repair" if order.repair else "Start"',
        '"Start" if order.repair else "Repair"',
        at(
            MAINTENANCE,
            "test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled[charge_payment-before-True]",
        ),
    ),
    Mutant(
        "delegated-repair-goes-forward",
        "an order that was being undone would be bought, since a batch has it too",
        _SAGAS,
        "await _repair_of(order) or order",
        "order",
        at(
            BULK,
            "test_a_repair_that_was_terminated_stays_one_where_a_batch_delegates_its_order",
        ),
    ),
)
