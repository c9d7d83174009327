-- External steps: effects that are with a provider elsewhere. Re-runnable.
--
-- external_steps has one row per step, written before the first call:
--   intended  calls may be sent           -> done, never, undoing, settling
--   done      it has its effect           -> undoing
--   never     it has none and never will  -> undone
--   undoing   closed for new calls; being settled and reversed    -> undone, resolved, done (there is no way back)
--   settling  a pivot, closed for new calls; being settled        -> done, never
--   undone    no effect is left and none can come
--   resolved  a person has undone it by hand
CREATE TABLE IF NOT EXISTS external_steps (
    saga_id        text        NOT NULL,
    step           text        NOT NULL,
    provider       text        NOT NULL,
    fingerprint    text        NOT NULL,                 -- of the request, as the step fence has it
    key            text        NOT NULL,                 -- what every call is sent under
    undo_key       text        NOT NULL,                 -- what every reversal is sent under
    generation     integer     NOT NULL DEFAULT 0,       -- raised where a person said "never" and the step goes on
    request        jsonb       NOT NULL,                 -- what is sent: always read back from here
    phase          text        NOT NULL,
    seal           text        NOT NULL DEFAULT 'open',  -- whether a call under the key can still act
    permitted      integer     NOT NULL DEFAULT 0,       -- calls that were permitted, so far
    first_at       timestamptz,                          -- the first and the last permission under this key
    last_at        timestamptz,
    doubts         integer     NOT NULL DEFAULT 0,       -- claims that settled nothing
    result         jsonb,                                -- null: not known; JSON's null: known, and nothing
    stands         boolean     NOT NULL DEFAULT false,   -- an undo found that there is no way back
    refusal        jsonb,                                -- the provider's final no
    reversed       boolean     NOT NULL DEFAULT false,   -- a reversal was answered well
    rev_first_at   timestamptz,                          -- the first and the last permission to reverse
    rev_last_at    timestamptz,
    question       text,                                 -- what a person is asked
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT external_steps_pk PRIMARY KEY (saga_id, step),
    CONSTRAINT external_steps_key_is_one_steps UNIQUE (key),
    CONSTRAINT external_steps_phase_is_known
        CHECK (phase IN ('intended', 'done', 'never', 'undoing', 'settling', 'undone', 'resolved')),
    CONSTRAINT external_steps_seal_is_known CHECK (seal IN ('open', 'sealed', 'silent', 'foreign')),
    CONSTRAINT external_steps_done_has_a_result CHECK (phase <> 'done' OR result IS NOT NULL),
    CONSTRAINT external_steps_times_are_whole CHECK ((first_at IS NULL) = (last_at IS NULL)),
    CONSTRAINT external_steps_reversal_times_are_whole CHECK ((rev_first_at IS NULL) = (rev_last_at IS NULL))
);

-- One row per call, written by the transaction that permits it. `live` is what may still act: also a call that was
-- answered 500, since that may come from a gateway while the request goes on.
CREATE TABLE IF NOT EXISTS external_calls (
    saga_id      text        NOT NULL,
    step         text        NOT NULL,
    n            integer     NOT NULL,
    kind         text        NOT NULL,
    live         boolean     NOT NULL,
    permitted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    answered_at  timestamptz,
    status       text,                                   -- what was heard: an answer's class, and its message
    replayed     boolean     NOT NULL DEFAULT false,     -- the provider marked it as a stored answer
    CONSTRAINT external_calls_pk PRIMARY KEY (saga_id, step, n),
    CONSTRAINT external_calls_of_a_step FOREIGN KEY (saga_id, step) REFERENCES external_steps ON DELETE CASCADE,
    CONSTRAINT external_calls_kind_is_known CHECK (kind IN ('do', 'claim', 'void', 'reverse'))
);

-- What people said of steps whose outcome was unknown. Never changed, never deleted with the saga.
CREATE TABLE IF NOT EXISTS saga_verdicts (
    verdict_id bigint      GENERATED ALWAYS AS IDENTITY,
    saga_id    text        NOT NULL,
    step       text        NOT NULL,
    verdict    text        NOT NULL,
    who        text        NOT NULL,
    why        text        NOT NULL,
    result     jsonb,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT saga_verdicts_pk PRIMARY KEY (verdict_id),
    CONSTRAINT saga_verdicts_verdict_is_known CHECK (verdict IN ('happened', 'never', 'undone_by_hand')),
    CONSTRAINT saga_verdicts_say_who_and_why CHECK (who <> '' AND why <> '')
);
