-- with: jobs
-- How many jobs are pending, scheduled, leased, succeeded and dead, and the dead by class.

local pending, scheduled = 0, 0
for priority = 1, 9 do
  pending = pending + redis.call('ZCARD', WAITING .. priority)
  scheduled = scheduled + redis.call('ZCOUNT', WAITING .. priority, '(' .. digits(NOW), '+inf')
end
return reply({
  pending, scheduled, redis.call('HLEN', KEY.leased), redis.call('ZCARD', KEY.succeeded),
  redis.call('ZCARD', KEY.dead), redis.call('HGETALL', KEY.classes),
})
