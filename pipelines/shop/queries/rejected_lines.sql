-- How many lines could not be read? Their bytes and the reasons stand in the same table.
SELECT count(*) AS rejected FROM shop.lines_rejected WHERE part = 0;
