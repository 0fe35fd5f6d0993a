-- with: jobs
-- Whether any job is pending or leased. Argument: whether scheduled ones count.

local latest = ARGS[1] and '+inf' or digits(NOW)
local found = redis.call('EXISTS', KEY.leased, KEY.tried) > 0
for priority = 1, 9 do
  found = found or redis.call('ZCOUNT', WAITING .. priority, '-inf', latest) > 0
end
return reply(found)
