SET LOCAL lock_timeout = '5s';
-- That the rows were seen stays true.
