-- with: jobs attempts controls answering moving
-- Lease jobs that are leased already, but in no lease. Argument: leases of token, worker, expiry,
-- whether of a suspect, keys.

for _, lease in ipairs(ARGS[1]) do
  local token, worker, expires_at_ms, solo, keys = unpack(lease)
  local ids = {}
  for _, id in ipairs(asked('HMGET', KEY.keys, keys)) do
    ids[#ids + 1] = id or nil
  end
  local mine, leased = {}, {}
  for index, parted in ipairs(held_by(PARTED, ids)) do
    if parted then
      mine[#mine + 1] = ids[index]
      leased[#leased + 1] = ids[index]
      leased[#leased + 1] = token .. string.sub(parted, #PARTED + 1)
    end
  end
  if #mine > 0 then
    many('HSET', KEY.leased, leased)
    redis.call('HSET', LEASE .. token, 'worker', worker, 'left', #mine, 'ids', table.concat(mine))
    redis.call('ZADD', KEY.leases, expires_at_ms, token)
    redis.call('HINCRBY', KEY.held, worker, 1)
    if solo then
      redis.call('HSET', KEY.solo, worker, token)
    end
    ring()
  end
end
return reply(true)
