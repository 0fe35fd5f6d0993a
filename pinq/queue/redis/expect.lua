-- with: jobs moving
-- Make a queue that is about to be filled, paused and draining. Arguments: name, source, signals,
-- generation, rate or '', in_flight or '', what the rate's bucket holds, and when.

local name, source, signals, generation, rate, in_flight, allowance, at_ms = unpack(ARGS)
redis.call('HSET', KEYS[1], 'name', name, 'source', source, 'signals', signals,
  'generation', generation, 'paused', 1, 'draining', 1, 'rate', rate, 'in_flight', in_flight,
  'allowance', allowance, 'allowance_at_ms', at_ms)
redis.call('DEL', MOVING, MOVING .. ':leases')
return reply(true)
