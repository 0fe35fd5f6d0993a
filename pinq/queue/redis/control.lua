-- with: jobs controls
-- Write down what holds from now on; a new rate begins with a full bucket.
-- Arguments: paused, draining, rate or false, in_flight or false. Replies whether there is a queue.

local paused, draining, rate, in_flight = unpack(ARGS)
local queue = read_queue()
if not queue then
  return reply(false)
end
redis.call('HSET', KEYS[1], 'paused', paused and 1 or 0, 'draining', draining and 1 or 0,
  'rate', rate and string.format('%.17g', rate) or '', 'in_flight', in_flight or '')
if rate and rate ~= queue.rate then
  redis.call('HSET', KEYS[1], 'allowance', string.format('%.17g', bucket(rate)),
    'allowance_at_ms', digits(NOW))
end
ring()
return reply(true)
