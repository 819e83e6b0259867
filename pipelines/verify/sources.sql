-- Rows whose whole content follows from the producer's settings and the row's name, so that every one can be checked.
-- `tailwater verify produce` writes them and keeps a ledger of what became of each; bad ones are among them on purpose.

CREATE SOURCE events (
  run_id     VARCHAR NOT NULL,
  producer   VARCHAR NOT NULL,
  key        BIGINT NOT NULL,
  seq        BIGINT NOT NULL,    -- per producer and key, from 0
  batch      BIGINT NOT NULL,    -- the number of the send
  batch_rows BIGINT NOT NULL,    -- how many rows were sent in one request and must appear together
  sent_at    TIMESTAMP NOT NULL,
  crc        BIGINT NOT NULL,    -- of all other columns
  payload    VARCHAR NOT NULL
) WITH (topic = 'verify.events', format = 'json', partitions = '4', statistics = 'key, seq, batch');
