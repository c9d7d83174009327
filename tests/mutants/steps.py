"""Faults in the three steps and their undos: stock and money kept, priced once, handed over once."""

from tests.mutants.killers import ACTIVITIES, CONTRACT, SECOND_RUN, at
from tests.mutants.mutant import Mutant

_INVENTORY = "activities/inventory.py"
_PAYMENTS = "activities/payments.py"
_SHIPPING = "activities/shipping.py"
_STEPS = "activities/steps.py"

MUTANTS = (
    Mutant(
        "repeat-recomputes-the-reservation",
        "a retry would answer another price than the one that was reserved (P3)",
        _INVENTORY,
        "        return Reservation(**result)",
        "        lines = (\n"
        '            "SELECT sum(quantity * p.unit_price_minor)::bigint, min(p.currency)"\n'
        '            " FROM order_lines JOIN products p USING (sku) WHERE order_id = :order_id"\n'
        "        )\n"
        "        async with self._engine.connect() as connection:\n"
        '            row = (await connection.execute(text(lines), {"order_id": order.order_id})).one()\n'
        "        return Reservation(row[0] + 0 * len(result), row[1])",
        at(CONTRACT, "test_a_repeat_answers_the_first_result_although_the_facts_have_changed[reserve]"),
    ),
    Mutant(
        "release-in-one-statement",
        "the snapshot trap: an undo that waited for a reserve in flight does not see the rows of it",
        _INVENTORY,
        "        return await undo_step(self._engine, undo, Step.RESERVE, _RELEASE)\n",
        "        from sagafence import fence\n"
        "\n"
        "        key = fence_key(undo.order, Step.RESERVE)\n"
        "        whole = text(\n"
        '            "WITH closed AS (" + fence._CLOSE.text + "), released AS ("\n'
        "            \"UPDATE reservations r SET state = 'released' FROM closed WHERE closed.had_effect\"\n"
        "            \" AND r.order_id = :saga_id AND r.state = 'held' RETURNING r.sku, r.quantity), "
        'given AS ("\n'
        '            "UPDATE inventory i SET reserved = i.reserved - released.quantity FROM released"\n'
        "            \" WHERE i.sku = released.sku), moved AS (UPDATE orders SET status = 'unwinding', "
        "changed_by = 'undo reserve'\"\n"
        '            " FROM closed WHERE closed.had_effect AND order_id = :saga_id) SELECT had_effect, '
        'result FROM closed"\n'
        "        )\n"
        "        async with fence.transaction(self._engine) as connection:\n"
        "            closed = (await connection.execute(whole, key.parameters())).one_or_none()\n"
        "            if closed is not None and closed.had_effect:\n"
        '                return UndoResult("reversed", closed.result)\n'
        "\n"
        "        return await undo_step(self._engine, undo, Step.RESERVE, _RELEASE)\n",
        at(CONTRACT, "test_an_undo_waits_for_a_do_in_flight_and_then_reverses_it_completely[reserve]"),
    ),
    Mutant(
        "reserve-without-its-stock-guard",
        "goods that were never stocked would be promised",
        _INVENTORY,
        "       AND NOT EXISTS (SELECT FROM priced p LEFT JOIN inventory i USING (sku)\n"
        "                        WHERE coalesce(i.on_hand - i.reserved, 0) < p.quantity)\n",
        "",
        at(ACTIVITIES, "test_what_cannot_be_reserved_is_refused_by_name_and_leaves_no_row"),
    ),
    Mutant(
        "reserve-without-its-currency-guard",
        "an order in dollars would be paid in euros",
        _INVENTORY,
        "                      AND a.currency = min(priced.currency) AND a.currency = max(priced.currency))",
        "                      )",
        at(ACTIVITIES, "test_what_cannot_be_reserved_is_refused_by_name_and_leaves_no_row"),
    ),
    Mutant(
        "reserve-in-any-lock-order",
        "two orders of the same goods would deadlock",
        _INVENTORY,
        "    SELECT i.sku, w.quantity FROM opened, wanted w JOIN inventory i USING (sku)\n"
        "     ORDER BY i.sku FOR NO KEY UPDATE OF i\n",
        "    SELECT i.sku, w.quantity FROM opened, wanted w JOIN inventory i USING (sku)\n"
        "     ORDER BY md5(i.sku || opened.order_id) FOR NO KEY UPDATE OF i\n",
        at(ACTIVITIES, "test_orders_that_name_the_same_skus_the_other_way_round_do_not_deadlock"),
    ),
    Mutant(
        "reserve-takes-over-a-row-that-came-meanwhile",
        "one customer's order would become another's",
        _INVENTORY,
        "      FROM gate, outcome WHERE NOT EXISTS (SELECT FROM by_hand)\n",
        "      FROM gate, outcome WHERE NOT EXISTS (SELECT FROM by_hand)\n"
        "    ON CONFLICT (order_id) DO UPDATE SET status = excluded.status, changed_by = excluded.changed_by,\n"
        "       fingerprint = excluded.fingerprint, total_minor = excluded.total_minor, currency = excluded.currency\n",
        at(SECOND_RUN, "test_a_row_that_is_committed_while_reserve_waits_for_it_is_not_taken_over"),
    ),
    Mutant(
        "order-by-hand-keeps-no-price",
        "what the customer owes could not be explained by the lines",
        _INVENTORY,
        "    ON CONFLICT (order_id, sku) DO UPDATE SET unit_price_minor = excluded.unit_price_minor\n",
        "    ON CONFLICT (order_id, sku) DO NOTHING\n",
        at(ACTIVITIES, "test_the_first_saga_takes_an_order_that_was_written_by_hand"),
    ),
    Mutant(
        "release-gives-no-stock-back",
        "stock would leak with each rejected order",
        _INVENTORY,
        "    UPDATE inventory i SET reserved = i.reserved - locked.quantity FROM locked",
        "    UPDATE inventory i SET reserved = i.reserved FROM locked",
        at(CONTRACT, "test_undo_restores_what_do_changed_once[reserve]"),
    ),
    Mutant(
        "release-while-a-parcel-stands",
        "goods on their way would be for sale",
        _STEPS,
        "    if step is not Step.SHIP and (await",
        "    if step is Step.PAY and (await",
        at(ACTIVITIES, "test_money_and_stock_of_a_parcel_that_is_gone_stay_where_they_are"),
    ),
    Mutant(
        "pay-without-an-account",
        "a customer whose account is gone would be told to pay something in",
        _PAYMENTS,
        '    if balance_minor is None:\n        return UnknownCustomer(f"there is no customer {customer}")\n',
        "    balance_minor = balance_minor or 0\n",
        at(ACTIVITIES, "test_a_customer_who_is_gone_cannot_pay"),
    ),
    Mutant(
        "money-moves-before-the-gate",
        "a payment that comes after its refund would be captured all the same",
        _PAYMENTS,
        "      FROM bill JOIN advanced USING (order_id)\n",
        "      FROM bill\n",
        at(CONTRACT, "test_a_do_is_refused_when_its_undo_is_already_in_flight[pay]"),
    ),
    Mutant(
        "charge-at-todays-price",
        "the customer would pay another price than the one that was reserved",
        _PAYMENTS,
        "    SELECT o.order_id, o.customer, o.total_minor, o.currency, 'capture/'",
        "    SELECT o.order_id, o.customer, (SELECT sum(l.quantity * p.unit_price_minor)::bigint FROM order_lines l\n"
        "             JOIN products p USING (sku) WHERE l.order_id = o.order_id) AS total_minor,\n"
        "           o.currency, 'capture/'",
        at(ACTIVITIES, "test_a_price_that_changes_on_the_way_changes_nothing_for_the_order"),
    ),
    Mutant(
        "charge-explains-no-shortage-of-money",
        "a customer without money would be told nothing, after two minutes",
        _PAYMENTS,
        "    if balance_minor >= total_minor:",
        "    if balance_minor >= 0:",
        at(ACTIVITIES, "test_a_payment_above_the_balance_is_declined_and_moves_nothing"),
    ),
    Mutant(
        "refund-by-the-price-list",
        "a refund would be more or less than what was captured",
        _PAYMENTS,
        "credit_account, debit_account, amount_minor, currency\n          FROM transfers WHERE",
        "credit_account, debit_account,\n"
        "               (SELECT sum(l.quantity * p.unit_price_minor)::bigint FROM "
        "order_lines l JOIN products p USING (sku)\n"
        "                 WHERE l.order_id = :order_id), currency\n          FROM transfers WHERE",
        at(ACTIVITIES, "test_a_price_that_changes_on_the_way_changes_nothing_for_the_order"),
    ),
    Mutant(
        "refund-whenever-asked",
        "a repeated undo would try to pay twice",
        _STEPS,
        "            if undoing.had_effect:\n",
        "            if undoing.stored or undoing.had_effect:\n",
        at(CONTRACT, "test_undo_restores_what_do_changed_once[pay]"),
    ),
    Mutant(
        "refund-while-a-parcel-stands",
        "goods would be given away",
        _STEPS,
        "    if step is not Step.SHIP and (await",
        "    if step is Step.RESERVE and (await",
        at(ACTIVITIES, "test_money_and_stock_of_a_parcel_that_is_gone_stay_where_they_are"),
    ),
    Mutant(
        "refund-without-the-orders-lock",
        "a parcel that is being made ready would leave after the refund looked for it",
        _STEPS,
        "    locked = await lock_order(connection, undo.order, by=taken_back_by(undo))\n",
        "    locked = None if step is Step.PAY else await lock_order(connection, undo.order, by=taken_back_by(undo))\n",
        at(ACTIVITIES, "test_what_is_taken_back_waits_for_a_shipment_in_flight_and_is_then_refused[payment-carol]"),
    ),
    Mutant(
        "release-without-the-orders-lock",
        "an order would be unwinding with a parcel on its way",
        _STEPS,
        "    locked = await lock_order(connection, undo.order, by=taken_back_by(undo))\n",
        "    locked = None if step is Step.RESERVE else await lock_order(connection, undo.order, "
        "by=taken_back_by(undo))\n",
        at(ACTIVITIES, "test_what_is_taken_back_waits_for_a_shipment_in_flight_and_is_then_refused[stock-carol]"),
    ),
    Mutant(
        "ship-somebody-elses-order",
        "other content under a paid order's id would be sent",
        _SHIPPING,
        "o.status = 'paid' AND o.fingerprint = :fingerprint",
        "o.status = 'paid'",
        at(CONTRACT, "test_other_content_under_the_same_order_id_is_refused[ship-new-do]"),
    ),
    Mutant(
        "irrevocable-parcel-counts-as-undone",
        "a parcel with the courier would be refunded",
        _STEPS,
        "        raise _Irrevocable(undoing.stored)\n",
        "        pass\n",
        at(ACTIVITIES, "test_a_parcel_that_is_gone_is_irrevocable_and_stays_as_it_is"),
    ),
    Mutant(
        "irrevocable-closes-the-fence",
        "the undo's transaction would commit a fence that says the parcel never left",
        _STEPS,
        "    except _Irrevocable as irrevocable:\n",
        "    except _Irrevocable as irrevocable:\n"
        "        async with undo_once(engine, fence_key(undo.order, step)):\n"
        "            pass\n",
        at(ACTIVITIES, "test_a_parcel_that_is_gone_is_irrevocable_and_stays_as_it_is"),
    ),
    Mutant(
        "cancelled-label-puts-no-goods-back",
        "goods that never left would be missing from the shelf",
        _SHIPPING,
        "    UPDATE inventory i SET on_hand = i.on_hand + locked.quantity, reserved = i.reserved + locked.quantity\n",
        "    UPDATE inventory i SET on_hand = i.on_hand, reserved = i.reserved\n",
        at(CONTRACT, "test_undo_restores_what_do_changed_once[ship]"),
    ),
    Mutant(
        "repair-cancels-a-completed-order",
        "an order that ended well while the sweep looked at it would be taken back",
        _STEPS,
        "    return undo.ending is Ending.CANCELLED and not undo.order.repair\n",
        "    return undo.ending is Ending.CANCELLED\n",
        at(SECOND_RUN, "test_a_repair_of_an_order_that_completed_meanwhile_leaves_it_completed[carol]"),
    ),
    Mutant(
        "courier-leaves-the-parcel-behind",
        "what cannot be called back would be taken for a label",
        _SHIPPING,
        "           CASE WHEN hands_over_at_once THEN 'handed_over' ELSE 'label' END,\n"
        "           CASE WHEN hands_over_at_once THEN now() END\n",
        "           'label', NULL\n",
        at(ACTIVITIES, "test_a_parcel_that_is_gone_is_irrevocable_and_stays_as_it_is"),
    ),
    Mutant(
        "ship-counts-although-it-is-being-undone",
        "a stuck order that is reset would complete in Temporal, and nobody could retry its undo",
        _SHIPPING,
        "    if status == OrderStatus.COMPLETED:\n        return None\n    return StepAlready",
        "    if status:\n        return None\n    return StepAlready",
        at(
            SECOND_RUN,
            "test_a_second_run_of_a_stuck_order_whose_steps_all_stand_does_not_take_it_for_completed[mended-_reset]",
        ),
    ),
)
