-- What the shop sends. Each source becomes a table; each source without a topic has a landing topic of its own,
-- which HTTP, Flight, files and `tailwater ingest` append to. The rows are in data/shop.

CREATE SOURCE orders (
  order_number    BIGINT NOT NULL,
  order_date      TIMESTAMP,
  required_date   TIMESTAMP,
  shipped_date    TIMESTAMP,
  status          VARCHAR,
  comments        VARCHAR,
  customer_number BIGINT,
  WATERMARK FOR order_date AS order_date - INTERVAL '1 day'
) WITH (format = 'json', statistics = 'order_number, order_date, customer_number');

-- What was ordered, one row per product. A line may come before its order.
CREATE SOURCE lines (
  order_number     BIGINT NOT NULL,
  product_code     VARCHAR,
  quantity_ordered INT,
  price_each       DECIMAL(12, 2),
  line_number      INT
) WITH (format = 'json', statistics = 'order_number, product_code');

CREATE SOURCE payments (
  customer_number BIGINT NOT NULL,
  check_number    VARCHAR,
  payment_date    TIMESTAMP,
  amount          DECIMAL(12, 2),
  WATERMARK FOR payment_date AS payment_date - INTERVAL '1 day'
) WITH (format = 'json', statistics = 'customer_number, payment_date');

CREATE SOURCE customers (
  customer_number           BIGINT NOT NULL,
  customer_name             VARCHAR,
  contact_last_name         VARCHAR,
  contact_first_name        VARCHAR,
  phone                     VARCHAR,
  address_line_1            VARCHAR,
  address_line_2            VARCHAR,
  city                      VARCHAR,
  state                     VARCHAR,
  postal_code               VARCHAR,
  country                   VARCHAR,
  sales_rep_employee_number BIGINT,
  credit_limit              DECIMAL(12, 2)
) WITH (format = 'csv', header = 'true', statistics = 'customer_number, country');

CREATE SOURCE products (
  product_code        VARCHAR NOT NULL,
  product_name        VARCHAR,
  product_line        VARCHAR,
  product_scale       VARCHAR,
  product_vendor      VARCHAR,
  product_description VARCHAR,
  quantity_in_stock   INT,
  buy_price           DECIMAL(12, 2),
  msrp                DECIMAL(12, 2)
) WITH (format = 'csv', header = 'true', statistics = 'product_code, quantity_in_stock');
