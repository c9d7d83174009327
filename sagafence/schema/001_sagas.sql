-- Sagas and local steps.
--
-- A change after a release is a file of its own, numbered on (002_...sql), that can be run again as all of this can:
--   * a new column:  ALTER TABLE ... ADD COLUMN, where a look into pg_attribute does not find it (IF NOT EXISTS alone
--     waits for every open transaction), null or with a constant default;
--   * a new index:   where to_regclass does not find it, for the same reason;
--   * older releases work on the new schema while they are replaced: add first, use later, remove last.

-- Which of these files have run here. One row.
CREATE TABLE IF NOT EXISTS sagafence_schema (
    is_the_row boolean NOT NULL DEFAULT true,
    version    integer NOT NULL,
    CONSTRAINT sagafence_schema_pk PRIMARY KEY (is_the_row),
    CONSTRAINT sagafence_schema_is_one_row CHECK (is_the_row)
);

-- One row per saga, written in the transaction of its first step and touched by every later one. It outlives all other
-- rows of the saga: one that has ended refuses steps that come late, also after its other rows were deleted.
CREATE TABLE IF NOT EXISTS sagas (
    saga_id       text        NOT NULL,
    workflow_id   text        NOT NULL,
    workflow_type text        NOT NULL,
    namespace     text        NOT NULL,  -- of Temporal; empty: of every one that asks
    task_queue    text        NOT NULL,
    input         jsonb,                 -- what the workflow was started with, and is started with again
    fingerprint   text        NOT NULL,  -- of the input; empty: not compared
    state         text        NOT NULL DEFAULT 'open',
    outcome       text,                  -- how it ended
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at      timestamptz,
    purged_at     timestamptz,           -- when its input and its other rows were deleted
    CONSTRAINT sagas_pk PRIMARY KEY (saga_id),
    CONSTRAINT sagas_state_is_known CHECK (state IN (
        'open',        -- going forward, to the pivot
        'at_pivot',    -- the pivot may have happened at its provider
        'past_pivot',  -- it has happened: there is no way back
        'unwinding',   -- the first undo has begun
        'ended'        -- all is settled
    )),
    CONSTRAINT sagas_end_is_whole CHECK (
        (state = 'ended') = (outcome IS NOT NULL) AND (state = 'ended') = (ended_at IS NOT NULL)
    ),
    CONSTRAINT sagas_has_its_input CHECK (input IS NOT NULL OR state = 'ended'),
    CONSTRAINT sagas_is_purged_when_ended CHECK (purged_at IS NULL OR (state = 'ended' AND input IS NULL))
) WITH (fillfactor = 70);

-- By columns that steps leave as they are: touching a saga's row writes no index.
DO $$
BEGIN
    -- IF NOT EXISTS would look only after it has waited for every open transaction that writes to the table.
    IF to_regclass(format('%I.sagas_unfinished', current_schema())) IS NULL THEN
        CREATE INDEX sagas_unfinished ON sagas (started_at, saga_id) WHERE state <> 'ended';
    END IF;
    IF to_regclass(format('%I.sagas_to_purge', current_schema())) IS NULL THEN
        CREATE INDEX sagas_to_purge ON sagas (ended_at) WHERE state = 'ended' AND purged_at IS NULL;
    END IF;
    IF to_regclass(format('%I.sagas_purged', current_schema())) IS NULL THEN
        CREATE INDEX sagas_purged ON sagas (ended_at) WHERE purged_at IS NOT NULL;
    END IF;
END $$;

-- One row per local step, written in the transaction of its effect. No foreign key: a tombstone may come before its saga.
CREATE TABLE IF NOT EXISTS step_fence (
    saga_id     text        NOT NULL,
    step        text        NOT NULL,
    phase       text        NOT NULL,
    had_effect  boolean     NOT NULL,  -- false: a tombstone, its step never ran and never will
    fingerprint text        NOT NULL,  -- of the request; the same key with another one is refused
    result      jsonb,                 -- what the first attempt answered, and every later one repeats
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    given       jsonb,                 -- what a declared step was called with, and its undo is called with
    PRIMARY KEY (saga_id, step),
    CONSTRAINT step_fence_phase_is_known CHECK (phase IN (
        'done',     -- the step's effect stands
        'undone',   -- it was reversed, or there was none
        'resolved'  -- an operator vouches that it was settled by hand
    )),
    CONSTRAINT step_fence_done_had_effect CHECK (phase <> 'done' OR (had_effect AND result IS NOT NULL))
) WITH (fillfactor = 70);
