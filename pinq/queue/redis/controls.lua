-- What a queue's controls admit. The rate is a token bucket, as pinq/queue/controls.py tells.

local function bucket(rate)
  return math.max(1, rate)
end

local function allowance(queue)
  local gained = math.max(0, NOW - queue.allowance_at_ms) * queue.rate / 1000
  return math.min(bucket(queue.rate), queue.allowance + gained)
end

local function spend(queue, count)
  if queue.rate then
    redis.call('HSET', KEYS[1], 'allowance', string.format('%.17g', allowance(queue) - count),
      'allowance_at_ms', digits(NOW))
  end
end

-- How many of `limit` jobs may be leased now.
local function admitted(queue, limit, dry)
  if queue.paused then
    return 0
  end
  if queue.in_flight then
    limit = math.min(limit, queue.in_flight - redis.call('HLEN', KEY.leased))
  end
  if queue.rate then
    if NOW < queue.allowance_at_ms and not dry then
      spend(queue, 0) -- the clock went back; count on from here
    end
    limit = math.min(limit, math.floor(allowance(queue)))
  end
  return math.max(0, limit)
end

-- From when a job may be leased; nil: not before somebody changes something.
local function admits_at_ms(queue)
  if queue.paused then
    return nil
  end
  if queue.in_flight and redis.call('HLEN', KEY.leased) >= queue.in_flight then
    return nil
  end
  if not queue.rate or NOW < queue.allowance_at_ms then
    return 0
  end
  local lacking = 1 - allowance(queue)
  return lacking <= 0 and 0 or NOW + math.ceil(1000 * lacking / queue.rate)
end
