-- Applies one batch, entirely or not at all. Returns the lane's previous cursor: at or past first_seq means
-- that nothing was applied, and the caller retries with the frames after that cursor.
--
-- KEYS: 1 the writer's cursors, 2 the services.
-- ARGV: 1 lane, 2 first_seq, 3 last_seq, 4 ttl_s, 5 recent_records, 6 services_max, 7 first and 8 last hour
--       counted, 9 oldest arrival retained; then for each service: name, arrival, number of records, the records
--       (oldest first), number of counters, and for each counter: hour, field, count.
--
-- The other keys are derived here from the service names, so this does not run on Redis Cluster.
local lane, first_seq, last_seq, ttl_s = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local cursors, services = KEYS[1], KEYS[2]

-- Lua numbers represent sequence numbers exactly up to 2^53: more frames than a writer produces in a century.
local stored = redis.call('HGET', cursors, lane) or '0'
if tonumber(stored) >= first_seq then return stored end

-- The cursor moves first. If a later command fails (a key of another type), the cache lacks the rest; with the
-- cursor moved last, the next attempt would count twice. A full or read-only Redis rejects this first write, and
-- nothing has changed. The cursor outlives the counters that it guards.
redis.call('HSET', cursors, lane, last_seq)
redis.call('EXPIRE', cursors, 2 * ttl_s)

local at = 10
local function take()
  at = at + 1
  return ARGV[at - 1]
end

while at <= #ARGV do
  local service, seen = take(), take()
  redis.call('ZADD', services, 'GT', seen, service)

  local recent, records = 'logweir:recent:' .. service, tonumber(take())
  -- In parts: Lua's stack is limited to a few thousand arguments.
  for piece = at, at + records - 1, 1000 do
    redis.call('LPUSH', recent, unpack(ARGV, piece, math.min(piece + 999, at + records - 1)))
  end
  at = at + records
  redis.call('LTRIM', recent, 0, tonumber(ARGV[5]) - 1)
  redis.call('EXPIRE', recent, ttl_s)

  local previous
  for _ = 1, tonumber(take()) do
    local volume = 'logweir:volume:' .. service .. ':' .. take()
    redis.call('HINCRBY', volume, take(), take())
    if volume ~= previous then redis.call('EXPIRE', volume, ttl_s) end
    previous = volume
  end
end

-- Removes expired services, and those above the limit, least recently seen first, with their keys.
local function remove(names)
  for _, service in ipairs(names) do
    local keys = { 'logweir:recent:' .. service }
    for hour = tonumber(ARGV[7]), tonumber(ARGV[8]) do
      keys[#keys + 1] = 'logweir:volume:' .. service .. string.format(':%d', hour)
    end
    redis.call('UNLINK', unpack(keys))
    redis.call('ZREM', services, service)
  end
end
remove(redis.call('ZRANGE', services, '-inf', '(' .. ARGV[9], 'BYSCORE'))
local surplus = redis.call('ZCARD', services) - tonumber(ARGV[6])
if surplus > 0 then remove(redis.call('ZRANGE', services, 0, surplus - 1)) end
redis.call('EXPIRE', services, ttl_s)
return stored
