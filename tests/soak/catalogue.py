"""The soak's own shop: SKUs that suffice, SKUs that run out, and customers of every kind.

Made from the number of orders alone, so that the model knows every price, stock and deposit without asking.
"""

from dataclasses import dataclass

PLENTY = tuple(f"plenty-{number:02d}" for number in range(40))
POPULAR = "popular"
"""In every fourth order: the stock row that most orders wait for."""
SCARCE = tuple(f"scarce-{number}" for number in range(5))
MISSING = "no-such-sku"

CITY = tuple(f"city-{number:02d}" for number in range(30))
LABEL = tuple(f"country-{number:02d}" for number in range(20)) + tuple(f"overseas-{number:02d}" for number in range(10))
"""Their parcels wait as labels that can still be cancelled."""
TIGHT = tuple(f"tight-{number}" for number in range(5))
BROKE = tuple(f"broke-{number}" for number in range(5))
NOWHERE = tuple(f"atlantis-{number}" for number in range(8))

_PRICES = {
    **{sku: 100 + 7 * number for number, sku in enumerate(PLENTY)},
    POPULAR: 1_250,
    **{sku: 900 + number for number, sku in enumerate(SCARCE)},
}
_RICH = 10**11


@dataclass(frozen=True)
class Catalogue:
    prices: dict[str, int]
    stock: dict[str, int]
    deposits: dict[str, int]
    zones: dict[str, str]


def catalogue(orders: int) -> Catalogue:
    stock = dict.fromkeys(PLENTY, 10 * orders + 100) | {POPULAR: 10 * orders + 100}
    stock |= dict.fromkeys(SCARCE, 3 + orders // 150)
    zones = dict.fromkeys((*CITY, *TIGHT, *BROKE), "city")
    zones |= {customer: customer.split("-")[0] for customer in (*LABEL, *NOWHERE)}
    deposits = dict.fromkeys(zones, _RICH)
    deposits |= dict.fromkeys(TIGHT, 2_000 * (1 + orders // 150))
    deposits |= dict.fromkeys(BROKE, 50)
    return Catalogue(dict(_PRICES), stock, deposits, zones)


def seeding(shop: Catalogue) -> str:
    products = ", ".join(f"('{sku}', '{sku}', {price})" for sku, price in shop.prices.items())
    inventory = ", ".join(f"('{sku}', {units}, {units})" for sku, units in shop.stock.items())
    accounts = ", ".join(
        f"('{name}', 'customer', '{name}', {shop.deposits[name]}, '{zone}')" for name, zone in shop.zones.items()
    )
    deposits = ", ".join(
        f"('deposit/{name}', 'deposit', 'bank', '{name}', {money}, 'EUR')" for name, money in shop.deposits.items()
    )
    return f"""
        INSERT INTO products (sku, name, unit_price_minor) VALUES {products};
        INSERT INTO inventory (sku, initial, on_hand) VALUES {inventory};
        INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone) VALUES {accounts};
        INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)
        VALUES {deposits};
        SELECT approve_what_is_there('the soak''s own shop');
        {_BREAKAGE}
    """


# An undo is broken for the orders that `soak.broken` names, and for no other. The role `checkout` cannot read
# the table, the triggers can.
_BREAKAGE = """
CREATE SCHEMA soak;
CREATE TABLE soak.broken (order_id text, step text, PRIMARY KEY (order_id, step));
CREATE FUNCTION soak.refuse_undo() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM soak.broken b WHERE b.order_id = NEW.order_id AND b.step = TG_ARGV[0]) THEN
        RAISE EXCEPTION 'broken on purpose';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER broken BEFORE UPDATE ON reservations FOR EACH ROW
    WHEN (NEW.state = 'released') EXECUTE FUNCTION soak.refuse_undo('reserve');
CREATE TRIGGER broken BEFORE INSERT ON transfers FOR EACH ROW
    WHEN (NEW.kind = 'refund') EXECUTE FUNCTION soak.refuse_undo('pay');
CREATE TRIGGER broken BEFORE UPDATE ON shipments FOR EACH ROW
    WHEN (NEW.state = 'cancelled') EXECUTE FUNCTION soak.refuse_undo('ship');
"""
