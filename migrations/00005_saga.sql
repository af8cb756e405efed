-- +goose Up

-- The sagas that this database has had a step, an abort or a completion of. Whoever does something to a saga
-- writes its row first, and so waits for whoever else does.
CREATE TABLE streamkeel.saga (
	flow        text        NOT NULL,
	saga_id     text        NOT NULL, -- the correlation id of its events
	state       text        NOT NULL DEFAULT 'running',
	started     timestamptz NOT NULL DEFAULT now(),
	updated     timestamptz NOT NULL DEFAULT now(),
	cause       text        NOT NULL DEFAULT '', -- why it was aborted
	steps       integer     NOT NULL DEFAULT 0,  -- the last seq that was given to a step
	last_step   text        NOT NULL DEFAULT '',
	expected_by timestamptz, -- when the next step, or the end, is overdue; NULL where nothing was declared
	PRIMARY KEY (flow, saga_id),
	CONSTRAINT saga_state CHECK (state IN ('running', 'completed', 'aborting', 'compensated', 'parked'))
) WITH (fillfactor = 70);

-- What a person looks for among many that ended well.
CREATE INDEX saga_open ON streamkeel.saga (flow, updated) WHERE state IN ('running', 'aborting', 'parked');

-- The barrier: one row for each action and each compensation, written in the transaction of its effects. The
-- primary key makes a second one wait for the first, and then do nothing.
CREATE TABLE streamkeel.saga_step (
	flow     text        NOT NULL,
	saga_id  text        NOT NULL,
	step     text        NOT NULL,
	op       text        NOT NULL,
	outcome  text        NOT NULL,
	seq      integer     NOT NULL, -- the order in which they happened
	event_id text        NOT NULL DEFAULT '',
	event    bytea,                -- the action's event, for its compensation
	attempts integer     NOT NULL DEFAULT 0,  -- failed runs of a compensation
	error    text        NOT NULL DEFAULT '', -- why it failed, was refused or skipped
	at       timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (flow, saga_id, step, op),
	FOREIGN KEY (flow, saga_id) REFERENCES streamkeel.saga ON DELETE CASCADE,
	CONSTRAINT saga_step_op CHECK (op IN ('action', 'compensation')),
	CONSTRAINT saga_step_outcome CHECK (outcome IN ('done', 'refused', 'skipped', 'failed'))
);

-- What happened to each saga, for a person to read.
CREATE TABLE streamkeel.saga_log (
	id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	flow     text        NOT NULL,
	saga_id  text        NOT NULL,
	at       timestamptz NOT NULL DEFAULT clock_timestamp(),
	what     text        NOT NULL,
	step     text        NOT NULL DEFAULT '',
	event_id text        NOT NULL DEFAULT '',
	detail   text        NOT NULL DEFAULT '',
	FOREIGN KEY (flow, saga_id) REFERENCES streamkeel.saga ON DELETE CASCADE
);

CREATE INDEX saga_log_of ON streamkeel.saga_log (flow, saga_id, id);

-- Events that are to be published when they are due, unless the saga ends or a step cancels them.
CREATE TABLE streamkeel.saga_timer (
	flow     text        NOT NULL,
	saga_id  text        NOT NULL,
	name     text        NOT NULL,
	due_at   timestamptz NOT NULL,
	topic    jsonb       NOT NULL,
	event    bytea       NOT NULL,
	attempts integer     NOT NULL DEFAULT 0, -- how often firing it failed
	error    text        NOT NULL DEFAULT '',
	PRIMARY KEY (flow, saga_id, name),
	FOREIGN KEY (flow, saga_id) REFERENCES streamkeel.saga ON DELETE CASCADE
);

CREATE INDEX saga_timer_due ON streamkeel.saga_timer (due_at);
