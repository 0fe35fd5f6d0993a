-- with: jobs
-- Make a queue, or update it. Arguments: name, source, signals or false. Replies whether it made
-- one.

local name, source, signals = unpack(ARGS)
local row = redis.call('HMGET', KEYS[1], 'source', 'signals')
if not row[1] then
  make_queue(name, source, signals or '')
  ring()
  return reply(true)
end
redis.call('HSET', KEYS[1], 'source', source)
if signals and signals ~= row[2] then
  redis.call('HSET', KEYS[1], 'signals', signals)
  -- What was unknown until now is no change: nothing has been computed.
  if row[2] ~= '' then
    redis.call('HINCRBY', KEYS[1], 'generation', 1)
  end
end
return reply(false)
