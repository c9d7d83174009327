"""Faults in the rule of ids, in what is made of ids, and in the table of currencies."""

from tests.mutants.killers import CURRENCIES, IDENTIFIERS, IDENTIFIERS_IN_SQL, MODEL, REAL_IDS, UPGRADE, at
from tests.mutants.mutant import Mutant

_RULE = "domain/identifiers.py"
_SETUP = "setup.sql"
_WRITTEN = "test_wherever_an_id_stands_the_rule_holds"

MUTANTS = (
    Mutant(
        "id-may-hide-characters",
        "two ids that look alike would be two orders, and one could turn the line that it stands in around",
        _RULE,
        r"\u1680\u180E\u2000-\u200F",
        r"\u1680\u180E",
        at(MODEL, "test_an_id_has_no_character_that_python_does_not_print"),
    ),
    Mutant(
        "id-may-be-written-apart",
        "one name typed on two keyboards would be two orders",
        _RULE,
        'if not unicodedata.is_normalized("NFC", value):',
        "if False:",
        at(MODEL, "test_it_is_reported_what_is_wrong_with_an_id"),
    ),
    Mutant(
        "database-takes-ids-that-are-written-apart",
        "an order by hand would be one that no saga takes",
        _SETUP,
        "           AND value IS NFC NORMALIZED\n",
        "",
        at(IDENTIFIERS_IN_SQL, f"{_WRITTEN}[orders_id_is_printable]"),
    ),
    Mutant(
        "database-takes-blanks-at-the-end-of-an-id",
        "an order by hand would be one that no saga takes",
        _SETUP,
        " AND value NOT LIKE '% '\n",
        "\n",
        at(IDENTIFIERS_IN_SQL, f"{_WRITTEN}[accounts_id_is_printable]"),
    ),
    Mutant(
        "upgrade-keeps-the-stricter-ids",
        "a database of an earlier version would refuse what its new workers accept",
        _SETUP,
        "    IF found IS DISTINCT FROM definition THEN\n",
        "    IF found IS NULL THEN\n",
        at(UPGRADE, "test_a_database_of_stricter_ids_takes_those_of_other_systems"),
    ),
    Mutant(
        "upgrade-stops-at-a-row-that-does-not-fit",
        "one account of old would keep setup.sql from its end for ever",
        _SETUP,
        "        EXCEPTION WHEN integrity_constraint_violation THEN\n",
        "        EXCEPTION WHEN division_by_zero THEN\n",
        at(UPGRADE, "test_rows_that_a_new_constraint_does_not_allow_stay_and_are_reported_of"),
    ),
    Mutant(
        "id-is-typed-as-it-is",
        "what the starter says to type would be other words to a shell, or a command of its own",
        _RULE,
        "shlex.quote(identifier)",
        "identifier",
        at(IDENTIFIERS, "test_an_id_is_typed_as_one_argument"),
    ),
    Mutant(
        "id-is-written-into-the-log-as-it-is",
        "an id could pass for an event of another order",
        _RULE,
        """ if " " in identifier or '"' in identifier else identifier""",
        ' if identifier == " " else identifier',
        at(IDENTIFIERS, "test_an_id_is_one_word_of_a_line_and_no_two_are_the_same"),
    ),
    Mutant(
        "bookmark-does-not-know-an-id-that-is-quoted",
        "saga.log would log everything again after each order with a blank in its id",
        "adapters/event_query.py",
        """CASE WHEN order_id ~ '[ "]' THEN""",
        "CASE WHEN false THEN",
        at(REAL_IDS, "test_an_order_under_any_legal_id_is_started_shown_listed_and_logged"),
    ),
    Mutant(
        "page-of-the-sweep-is-too-large-for-temporal",
        "a sweep would fail for ever where a hundred large orders wait",
        "activities/sweep.py",
        "_PAGE_BYTES = 1_000_000",
        "_PAGE_BYTES = 100_000_000",
        at(REAL_IDS, "test_a_page_of_the_largest_orders_fits_into_what_temporal_takes"),
    ),
    Mutant(
        "largest-order-is-refused-as-too-long",
        "an order that the rule allows would be rejected",
        "domain/model.py",
        "max_payload_bytes: ClassVar[int] = 262_144",
        "max_payload_bytes: ClassVar[int] = 65_536",
        at(REAL_IDS, "test_an_order_may_be_as_large_as_the_rule_allows"),
    ),
    Mutant(
        "currency-has-two-decimals-always",
        "a dinar would be told as ten",
        "domain/model.py",
        "    decimals = MINOR_UNITS.get(currency)\n",
        "    decimals: int | None = 2\n",
        at(MODEL, "test_money_is_written_with_the_decimals_of_its_currency"),
    ),
    Mutant(
        "gold-is-a-currency",
        "a price would be in what has no minor unit",
        _SETUP,
        "('WST', 2), ('XAD', 2)",
        "('WST', 2), ('XAU', 2), ('XAD', 2)",
        at(CURRENCIES, "test_the_database_refuses_a_currency_that_there_is_not"),
    ),
    Mutant(
        "hint-for-an-id-that-looks-like-an-option",
        "what a stuck order says to type would be refused by the starter",
        "workflows/wording.py",
        'arguments = f"{rest} {order}" if order.startswith("-- ") else f"{order} {rest}"',
        'arguments = f"{order} {rest}"',
        at(IDENTIFIERS, "test_what_a_stuck_order_says_to_type_reaches_that_order[-1001]"),
    ),
)
