-- Schema 1 of counters.db. Later versions add, they never change or drop these.

CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- whose counters: a system title and a key; ids are given in order, so that meters read one after the other share a page
CREATE TABLE identity(id INTEGER PRIMARY KEY, title BLOB NOT NULL, fingerprint TEXT NOT NULL, UNIQUE(title, fingerprint));

-- arrays over identity ids, 64 to a chunk, little endian
-- own: 8 octets each, every counter below it may have been used
CREATE TABLE own(chunk INTEGER PRIMARY KEY, body BLOB NOT NULL);
-- association: 8 octets each, last accepted + 1
CREATE TABLE association(chunk INTEGER PRIMARY KEY, body BLOB NOT NULL);
-- push: 16 octets each, highest accepted + 1, then a bit for each of the 64 counters from the highest downwards
CREATE TABLE push(chunk INTEGER PRIMARY KEY, body BLOB NOT NULL);
