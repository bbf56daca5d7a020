-- Journal schema 1. Later versions add tables and columns, they never change or drop these (release N writes what N-1 reads).

CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;  -- epoch, machine, head, upto (segments in the ledger), low (chunks released)

CREATE TABLE meter(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE device(id INTEGER PRIMARY KEY, meter INTEGER NOT NULL, serial TEXT NOT NULL, UNIQUE(meter, serial));
CREATE TABLE layout(id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, body BLOB NOT NULL);

-- a second copy of the three, compressed: all segments hang on them, and damage should not
CREATE TABLE spare(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL);

-- id = (meter id / 64) * 16 + class of profile; body = entries of these meters up to and with segment `upto`
CREATE TABLE ledger(id INTEGER PRIMARY KEY, upto INTEGER NOT NULL, body BLOB NOT NULL);

-- one bit per segment id, 4,096 to a chunk: acked by the cloud or set aside; what was released since the ledger was written
-- stands in `acks` of the segments of those commits, [[first id, count], ...]
CREATE TABLE released(chunk INTEGER PRIMARY KEY, bits BLOB NOT NULL);

-- which segment table holds what; emptied whole
CREATE TABLE generation(slot INTEGER PRIMARY KEY, class INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
                        since INTEGER NOT NULL, until INTEGER, bytes INTEGER NOT NULL);

-- refused for good by the cloud (or unreadable), waiting for a late ack
CREATE TABLE aside(what TEXT NOT NULL, id TEXT NOT NULL, cause TEXT NOT NULL, why TEXT NOT NULL, at INTEGER NOT NULL, body BLOB,
                   PRIMARY KEY(what, id));

-- id = 64 bits of the alarm's id, kept after the ack so that a repeat is known; body is empty from then on
CREATE TABLE alarm(id INTEGER PRIMARY KEY, n INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB);
CREATE INDEX alarm_waiting ON alarm(n) WHERE body IS NOT NULL;

CREATE TABLE note(id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, sub TEXT NOT NULL, body BLOB NOT NULL);

-- and the segment tables seg0 ... seg25, made in a loop:
-- CREATE TABLE seg<slot>(id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, kind TEXT NOT NULL, blocks INTEGER NOT NULL,
--                        readings INTEGER NOT NULL, at INTEGER NOT NULL, codec INTEGER NOT NULL, acks BLOB,
--                        body BLOB NOT NULL)
