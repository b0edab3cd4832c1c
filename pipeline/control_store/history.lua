#!lua
-- Add to the totals of all ingest processes. With a sample, also write an entry that contains the totals.
-- KEYS: 1 totals, 2 entries. ARGV: 1 sample as JSON or '', 2 entries kept, 3 milliseconds to live, 4 number of names
-- whose totals are the entry's counts, 5 number of names behind them whose totals are its levels; those of all further
-- names are of protocols, and are written if one of them is in use; 6 milliseconds: no entry is written if the newest one
-- is younger, since another process has written it. Then name, count, …
-- Returns whether an entry was written: 1 or 0.
-- No allow-oom: at the memory limit, Redis refuses history first, and memory is left for data that the system needs.

local names = {}
for i = 7, #ARGV, 2 do
  names[#names + 1] = ARGV[i]
  if ARGV[i + 1] ~= '0' then redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local is_due, is_behind, now = ARGV[1] ~= '', false, nil
local newest = is_due and redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local written_at = tonumber(string.match(newest[1], '^%d+'))
  is_behind = now < written_at
  for i = 1, #newest[2], 2 do
    if newest[2][i] == 't' then written_at = tonumber(newest[2][i + 1]) end
  end
  local age = now - written_at
  is_due = age < 0 or age >= tonumber(ARGV[6])  -- below 0: the clock was set back since
end
if is_due then
  local totals = redis.call('HMGET', KEYS[1], unpack(names))
  for i = 1, #names do totals[i] = totals[i] or '0' end
  local counts, levels = tonumber(ARGV[4]), tonumber(ARGV[5])
  local entry = { 'c', table.concat(totals, ' ', 1, counts), 's', ARGV[1] }
  if levels > 0 then
    entry[#entry + 1] = 'l'
    entry[#entry + 1] = table.concat(totals, ' ', counts + 1, counts + levels)
  end
  local protocols = table.concat(totals, ' ', counts + levels + 1)
  if string.find(protocols, '[1-9]') then
    entry[#entry + 1] = 'p'
    entry[#entry + 1] = protocols
  end
  -- The clock was set back: the new id is right behind the newest one, and does not have the time.
  if is_behind then
    entry[#entry + 1] = 't'
    entry[#entry + 1] = string.format('%d', now)
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[2], '*', unpack(entry))
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return is_due and 1 or 0
