"""The Lua of each operation that has to look before it writes. One call each; none needs its keys to change together.

On one server a script is atomic. On a cluster its keys are done one by one (`cluster_operations`): what each one
promises holds as well then, but for `FILL` with result tags, whose argument (see `fence`) needs the log, the tokens and
the entry at one instant, and which has another argument there.

Times are the server's own, in microseconds and 16 digits.
"""

from dataclasses import dataclass
from hashlib import sha1

from .layout import ENTRY, KEPT, LINEAGE_END, LINEAGE_START, NO_TOKEN, UNIQUE_LENGTH, VACANT


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, sent by its digest and, to a server that does not know it, once in full."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """Make a script of its text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def lua(value: bytes) -> str:
    """Return a Lua string of these bytes."""
    return "'" + "".join(f"\\{byte:03d}" for byte in value) + "'"


NOW = "local t = redis.call('TIME') local now = t[1] .. string.format('%06d', t[2])"

# The invalidation log is the clock that invalidations are ordered by, since the server's may be set back: each of its
# entries has a time behind that of the one before it. Gives the last entry's id and time; '' and 0 without one.
LAST = """
local function at_of(entry)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'at' then return tonumber(entry[2][i + 1]) or 0 end
  end
  return tonumber(string.match(entry[1], '^%d+')) * 1000 + 999
end
local function last_of(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not last then return '', 0 end
  return last[1], at_of(last)
end
local function digits(at) return string.format('%016.0f', at) end
"""

# What waits for a load elsewhere is told when the lease ends, however it ends; if nobody waited, nothing is written.
_END_LEASE = f"""
local function end_lease(lease, done, owner, key)
  local held = redis.pcall('GET', lease)
  if type(held) == 'string' and string.sub(held, 1, {UNIQUE_LENGTH}) == owner then
    redis.call('DEL', lease)
    if string.sub(held, -2) == ' w' then
      local told = redis.pcall('XADD', done, 'MAXLEN', '~', 1000, '*', 'key', key)
      if type(told) ~= 'string' then redis.call('DEL', done) end
    end
  end
end
"""

# Keys: entry, tokens, lease, wakes, log.
# Arguments: vacancy, its ms, token ms, renew?, lease's owner or '', its ms, log?, and a fresh value for each token.
#
# A value without a lineage is absent, foreign or of another format version: it is replaced. The tokens are read after
# all that is missing was made, by us or by somebody faster. A new lineage is written into the value, which stays as it
# is. The lease names what it was taken under: under newer tokens, in a newer lineage, or with result tags behind a
# longer log, it is nobody's. Who waits for it then waits for the load that has overtaken it.
OPEN = Script.of(f"""
{NOW}
{LAST}
local log = KEYS[#KEYS]
local logged, at
local head = redis.pcall('GETRANGE', KEYS[1], 0, {LINEAGE_END - 1})
local kind = type(head) == 'string' and #head == {LINEAGE_END} and string.sub(head, 1, {LINEAGE_START})
if kind == {lua(ENTRY)} or kind == {lua(KEPT)} or kind == {lua(VACANT)} then
  if ARGV[4] == '1' then
    redis.call('SETRANGE', KEYS[1], {LINEAGE_START}, string.sub(ARGV[1], {LINEAGE_START + 1}))
    head = kind .. string.sub(ARGV[1], {LINEAGE_START + 1})
  end
  if kind == {lua(VACANT)} then redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') end
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  head = ARGV[1]
end
local tokens = {{}}
local under = string.sub(head, {LINEAGE_START + 1})
for i = 2, #KEYS - 3 do
  local token = redis.pcall('GET', KEYS[i])
  if type(token) ~= 'string' or #token < {UNIQUE_LENGTH} then
    if not at then logged, at = last_of(log) end
    token = ARGV[i + 6] .. ' ' .. digits(at) .. ' {NO_TOKEN.decode()} first use'
    redis.call('SET', KEYS[i], token, 'PX', ARGV[3])
    token = redis.call('GET', KEYS[i])
  end
  tokens[i - 1] = token
  under = under .. string.sub(token or '', 1, {UNIQUE_LENGTH})
end
if ARGV[7] == '1' then
  logged, at = last_of(log)
  if logged == '' then
    at = tonumber(now)
    logged = redis.call('XADD', log, '*', 'prev', '0-0', 'what', '{{"tokens":{{}},"entries":[]}}', 'at', now)
  end
  under = under .. logged
end
local leads, left, position = 1, 0, '0-0'
if ARGV[5] ~= '' then
  local lease, wakes = KEYS[#KEYS - 2], KEYS[#KEYS - 1]
  local held = redis.pcall('GET', lease)
  left = redis.call('PTTL', lease)
  local same = type(held) == 'string' and string.sub(held, {UNIQUE_LENGTH + 1}, {UNIQUE_LENGTH} + #under) == under
  if same and left > 0 then
    leads = 0
    if string.sub(held, -2) ~= ' w' then redis.call('APPEND', lease, ' w') end
    local last = redis.pcall('XREVRANGE', wakes, '+', '-', 'COUNT', 1)
    position = last[1] and last[1][1] or '0-0'
  else
    local waited = type(held) == 'string' and string.sub(held, -2) == ' w' and ' w' or ''
    redis.call('SET', lease, ARGV[5] .. under .. waited, 'PX', ARGV[6])
  end
end
local asked = ARGV[7] == '1'
return {{head, tokens, now, leads, left, position, asked and logged or '', asked and digits(at) or '0'}}
""")

# Keys: entry, tokens, result tags' tokens, lease, wakes, log.
# Arguments: lineage, head, rest, ttl ms, keep ms, number of tokens, of result tags, the log's time and last id, owner
# of the lease or '', and the tokens' values, then a fresh value for each result tag.
#
# A token must outlive the entries under it, or they end early: each fill prolongs its tokens, and never shortens them.
# Of result tags nothing is known without the log of before the load: its last entry must still be there, with its time,
# since a log that was begun anew within a millisecond can have another entry under that id.
FILL = Script.of(f"""
{NOW}
{LAST}
{_END_LEASE}
local tokens, results = tonumber(ARGV[6]), tonumber(ARGV[7])
if ARGV[10] ~= '' then end_lease(KEYS[#KEYS - 2], KEYS[#KEYS - 1], ARGV[10], KEYS[1]) end
if redis.pcall('GETRANGE', KEYS[1], {LINEAGE_START}, {LINEAGE_END - 1}) ~= ARGV[1] then return 0 end
local header = {{}}
for i = 1, tokens do header[i] = ARGV[10 + i] end
if results > 0 then
  local logged, at = last_of(KEYS[#KEYS])
  local seen = tonumber(ARGV[8])
  local quiet = logged == ARGV[9]
  local kept = redis.call('XRANGE', KEYS[#KEYS], ARGV[9], ARGV[9])[1]
  local refused = not kept or at_of(kept) ~= seen
  for i = 1, results do
    local key = KEYS[1 + tokens + i]
    local token = redis.pcall('GET', key)
    local made = type(token) == 'string' and tonumber(string.sub(token, {UNIQUE_LENGTH + 2}, {UNIQUE_LENGTH + 17}))
    if not made then
      token = ARGV[10 + tokens + i] .. ' ' .. digits(at) .. ' {NO_TOKEN.decode()} first use'
      redis.call('SET', key, token, 'PX', ARGV[5])
      refused = refused or not quiet
    elseif made > seen then
      refused = true
    end
    header[tokens + i] = string.sub(token, 1, {UNIQUE_LENGTH})
  end
  if refused then return 0 end
end
local value = ARGV[2] .. string.char(tokens + results) .. table.concat(header) .. now .. ARGV[3]
redis.call('SET', KEYS[1], value, 'PX', ARGV[4])
for i = 2, 1 + tokens + results do redis.call('PEXPIRE', KEYS[i], ARGV[5], 'GT') end
return 1
""")

# Keys: lease, wakes. Arguments: owner, entry.
RELEASE = Script.of(f"{_END_LEASE} end_lease(KEYS[1], KEYS[2], ARGV[1], ARGV[2])")

# Keys: tokens, entries, log, applied. Tokens and tombstones first, then the log, then the word to receipts: whoever
# hears of the invalidation finds it done.
INVALIDATE = Script.of(f"""
{NOW}
{LAST}
local tokens, entries, value, live = tonumber(ARGV[1]), tonumber(ARGV[2]), 10, 0
local log, applied = KEYS[#KEYS - 1], KEYS[#KEYS]
local logged, at = last_of(log)
local stamp = digits(math.max(tonumber(now), at + 1))
for i = 1, tokens do
  local before = redis.pcall('GETRANGE', KEYS[i], 0, {UNIQUE_LENGTH - 1})
  if type(before) ~= 'string' or #before ~= {UNIQUE_LENGTH} then before = '{NO_TOKEN.decode()}' end
  local token = ARGV[value] .. ' ' .. stamp .. ' ' .. before .. ' ' .. ARGV[value + 1]
  redis.call('SET', KEYS[i], token, 'PX', ARGV[3])
  value = value + 2
end
for i = tokens + 1, tokens + entries do
  local kind = redis.pcall('GETRANGE', KEYS[i], 0, {LINEAGE_START - 1})
  if kind == {lua(ENTRY)} or kind == {lua(KEPT)} then live = live + 1 end
  redis.call('SET', KEYS[i], ARGV[value], 'PX', ARGV[4])
  value = value + 1
end
if ARGV[6] ~= '' then
  local previous = logged == '' and '0-0' or logged
  local entry = {{'prev', previous, 'what', ARGV[6], 'at', stamp}}
  if ARGV[9] ~= '' then entry[7], entry[8] = 'why', ARGV[9] end
  redis.call('XADD', log, 'MAXLEN', '~', ARGV[5], '*', unpack(entry))
end
if ARGV[8] ~= '' then redis.call('XADD', applied, 'MAXLEN', '~', ARGV[7], '*', 'ids', ARGV[8], 'dead', '') end
return live
""")

# Keys: entry, tokens. Arguments: head with the tokens' count and values, rest, ttl ms, keep ms.
PUT = Script.of(f"""
{NOW}
redis.call('SET', KEYS[1], ARGV[1] .. now .. ARGV[2], 'PX', ARGV[3])
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[4], 'GT') end
""")

# Key: hash. Arguments: sender, its number, keep ms, and fields and amounts in turn.
#
# A field that holds no number is nobody's counter, and stays as it is. The number is written first: where there is no
# memory that fails, and nothing is added.
ADD_COUNTS = Script.of("""
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
for i = 4, #ARGV, 2 do redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""")
