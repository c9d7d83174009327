CREATE TABLE hotels (hotel text PRIMARY KEY, free_rooms integer NOT NULL CHECK (free_rooms >= 0));
CREATE TABLE invoices (trip_id text PRIMARY KEY, euros integer NOT NULL);
INSERT INTO hotels VALUES ('Seaside', 100), ('Full House', 0);
