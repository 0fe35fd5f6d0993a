-- with: jobs
-- Whether nothing is left of a queue that was dropped, not even events.

if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('XLEN', KEY.events) > 0 then
  return reply(false)
end
redis.call('DEL', KEY.events)
return reply(true)
