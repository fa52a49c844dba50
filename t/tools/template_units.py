"""Small templates for make_template_goldens.py: (source, variables), each
about one construct.  What Jinja2 refuses is here as well: there both fail."""

import re

MSGS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c", "n": 3}]
V = {"x": 1, "y": 2.5, "s": "hello", "t": True, "f": False, "none_": None,
     "l": [1, 2, 3, 4, 5], "d": {"a": 1, "b": [1, "two", None], "items": 7},
     "e": "", "el": [], "ed": {}, "u": "äöü漢字🙂", "m": MSGS,
     "ws": "  a b\t\n", "q": "it's \"x\" <&>\\", "neg": -7, "big": 10 ** 15,
     "words": ["pear", "Apple", "fig", "apple"], "fl": 1e22, "sm": 1e-7}

CASES = []


def case(source, **variables):
    used = {k: v for k, v in V.items()
            if re.search(r"\b%s\b" % k, source)}
    CASES.append((source, {**used, **variables}))


def exprs(*sources):
    for s in sources:
        case("{{ " + s + " }}")


# literals and how they print
exprs("1", "0", "1_000", "0x1F", "0b101", "0o17", "1.0", "1.5e3", "1e16",
      "1e15", "123456789012345680.0", "1e-4", "1e-5", "0.1", "0.30000000000004",
      "1.e3", "5e-324", "1.7976931348623157e308", "100.0", "1_0.5", "'a'",
      '"b"', "'a' 'b'", r"'\n\t\\\'\"'", r"'\x41\u00e4\U0001F642'", r"'\101'",
      r"'\q'", r"'\a\b\f\v'|tojson", "'ä漢🙂'", "true", "True", "false", "none",
      "None", "[]", "[1, 'a', 2.0, none, true]", "(1,)", "(1, 2)", "()",
      "{}", "{'a': 1, 2: 'b', none: [1]}", "[1,]", "{'a': 1,}", "1,2", "(1)",
      "['it\\'s', 'q\"', 'both\\'\"', '\\n\\r\\t\\\\', 'ä', '\\u200b\\x7f']",
      "[u]", "[1e22, -0.0, 1e-7]", "fl", "sm", "neg", "big", "1e309", "-1e309",
      "0777", "1__0", "'\\x4'", "'\\u12'", "99999999999999")

# operators
exprs("1 + 2", "1 - 2", "2 * 3", "7 / 2", "6 / 2", "7 // 2", "-7 // 2",
      "7 // -2", "-7 % 3", "7 % -3", "7 % 3", "7.5 % 2", "-7.5 % 2",
      "7.5 // 2", "-7.5 // 2", "2 ** 10", "2 ** -1", "2 ** 0.5", "-2 ** 2",
      "2 ** 3 ** 2", "1 + 2 * 3", "(1 + 2) * 3", "1 + 2.0", "1 / 0", "1 // 0",
      "1 % 0", "1.0 / 0", "'a' + 'b'", "'a' + 1", "[1] + [2]", "(1,) + (2,)",
      "[1] + (2,)", "'ab' * 3", "3 * 'ab'", "'ab' * -1", "[1] * 2", "true + 1",
      "true * 3", "'a' ~ 1 ~ none ~ 2.0 ~ true", "1 ~ 2 + 3", "'a' ~ missing",
      "-x", "+x", "--x", "-y", "not x", "not not x", "-'a'", "not missing",
      "x - -1", "1 -1", "x-1", "2*-3", "10 - 3 - 2", "100 // 7 // 2",
      "100 / 10 / 2", "7 - 2 * 3 % 4", "missing + 1", "1 + missing",
      "none + 1", "'%s' ~ 1", "0.1 + 0.2", "1e15 + 0.3", "3 * 1.1", "5 // 0.3",
      "-5 // 0.3", "5 % 0.3", "0 ** 0", "(-8) ** 3", "1 == true",
      "9223372036854775807", "4611686018427387904 + 4611686018427387903")

# comparison
exprs("1 == 1", "1 == 1.0", "1 == '1'", "'a' == 'a'", "[1] == [1]",
      "[1] == (1,)", "{'a': 1} == {'a': 1.0}", "{'a':1,'b':2} == {'b':2,'a':1}",
      "1 != 2", "1 < 2", "2 <= 2", "3 > 2", "2 >= 3", "1 < 2 < 3", "1 < 3 < 2",
      "3 > 2 == 2", "'a' < 'b'", "'a' < 'B'", "'ä' > 'z'", "[1, 2] < [1, 3]",
      "(1,) < (1, 2)", "1 < 'a'", "none < 1", "none == none", "missing == none",
      "missing == missing2", "missing != none", "missing < 1", "1 in [1, 2]",
      "3 in [1, 2]", "3 not in [1, 2]", "'a' in 'abc'", "'' in ''",
      "'d' in 'abc'", "'a' in d", "'z' not in d", "1 in 'a'", "'a' in missing",
      "'a' in none", "1 in 5", "[1] in [[1], 2]", "none in [none]",
      "true in [1]", "1.0 in {1: 2}", "[] in {}", "not 1 in [1]",
      "x == 1 and y == 2.5", "x == 2 or s", "f or e or 'z'", "t and 0",
      "t and s and l", "not t or s", "not (t and f)", "1 and missing",
      "missing or 'd'", "m[0] == m[1]", "m[0] == m[0]", "'1' < '10'",
      "true < 2", "1 is defined == true")

# conditional expressions
exprs("1 if t else 2", "1 if f else 2", "1 if f", "(1 if f) is undefined",
      "1 if t else 2 if f else 3", "1 if f else 2 if f else 3",
      "'a' if x is defined and x else 'b'", "('a' if f else 'b') ~ 'c'",
      "1 if f + 1", "(1 if f).x")

# attributes and items
exprs("d.a", "d['a']", "d.b[1]", "d.b.1", "d.zzz", "d.zzz.y", "d['zzz']",
      "d['zzz']['y']", "missing", "missing.x", "missing['x']", "missing[0]",
      "l[0]", "l[-1]", "l[9]", "l[-9]", "l['x']", "l.0", "s[0]", "s[-1]",
      "s[9]", "u[3]", "u[-1]", "none_.x", "none_['x']", "x.y", "x[0]",
      "d[none]", "d[[1]]", "{1: 'a'}[1]", "{1: 'a'}[true]", "{1: 'a'}[1.0]",
      "{'a': {'b': 5}}.a.b", "(1, 2)[1]", "[1, 2][true]", "d.items is callable",
      "d['items']", "d.items() | list", "d.keys() | list", "d.values() | list",
      "ed.items is callable", "ed['items'] is callable", "d.get('a')",
      "d.get('q')", "d.get('q', 5)", "d.get()",
      "d.get([])", "d.nope()", "m[-1].content", "m[0]['role'] + m[1].role",
      "m | length", "missing()", "x()", "none_()", "'a'.b is defined",
      "''.x is undefined", "l.append is callable", "s.upper is callable")

# slices
exprs("l[1:]", "l[:2]", "l[1:3]", "l[:-1]", "l[-2:]", "l[::2]", "l[::-1]",
      "l[3:0:-1]", "l[3:0:-2]", "l[10:]", "l[:100]", "l[-100:2]", "l[:]",
      "l[::0]", "l[2:1]", "s[1:]", "s[:-1]", "s[1:3]", "s[::-1]", "u[1:4]",
      "u[::-1]", "u[::2]", "u[-3:]", "u[4:1:-1]", "u[9:]", "e[::-1]", "e[1:]",
      "(1, 2, 3)[1:]", "m[1:]", "l[none:2]", "l['a':]", "l[1.0:]", "d[1:]",
      "missing[1:]", "none_[1:]", "l[x:]", "l[true:]", "l[:missing]",
      "l[-1:-3:-1]", "s[-1:0:-2]", "l[4::-3]", "l[:2:-1]", "l[1:4][0]")

# tests
for value in ("x", "y", "s", "t", "f", "none_", "l", "d", "missing", "(1,)",
              "e", "el", "ed", "0", "l|map('string')"):
    for test in ("defined", "undefined", "none", "string", "mapping",
                 "iterable", "sequence", "number", "boolean", "true", "false",
                 "integer", "float", "callable"):
        exprs("%s is %s" % (value, test))
exprs("x is not defined", "missing is not defined", "not x is defined",
      "3 is odd", "4 is even", "4 is divisibleby 2", "4 is divisibleby(3)",
      "1 is eq 1", "1 is equalto(1)", "1 is ne 2", "1 is lt 2", "2 is le 2",
      "3 is gt 2", "2 is ge 3", "1 is in [1]", "1 is not in [1]",
      "'a' is lower", "'A' is upper", "'1' is upper", "x is defined and f",
      "x is defined or f", "1 if x is defined else 2", "x is nonsense",
      "x is string is defined", "missing.a is defined", "d.q is defined",
      "d.q.r is defined", "x is sameas", "range is callable",
      "namespace() is mapping", "namespace() is iterable", "x is divisibleby",
      "x is greaterthan 0", "x is lessthan 5", "x is defined()",
      "3 is divisibleby 0", "'a' is odd")

# filters
exprs("s|length", "u|length", "l|count", "d|length", "missing|length",
      "none_|length", "x|length", "ws|trim", "'xxaxx'|trim('x')", "5|trim",
      "missing|trim", "none_|trim", "u|upper", "'ÄÖß'|lower", "'straße'|upper",
      "s|capitalize", "'HELLO wORLD'|capitalize", "'äB'|capitalize",
      "'hello wORLD foo-bar (baz) [q] it\\'s'|title", "'a  b'|title",
      "none_|upper", "missing|upper", "5|string", "none_|string",
      "[1, 'a']|string", "missing|string", "s|safe", "5|safe", "q|safe",
      "('<a>'|safe) + '<b>'", "'<b>' + ('<a>'|safe)", "('<a>'|safe) ~ '<b>'",
      "[s|safe]", "('<a>'|safe)|upper", "('a'|safe) + q",
      "s|replace('l', 'L')", "s|replace('l', 'L', 1)", "s|replace('', '-')",
      "'aaa'|replace('a', 'b', 2)", "s|replace('x', 'y')", "5|replace(5, 6)",
      "s|replace('l')", "u|replace('漢', 'K')", "u|replace('', '.')",
      "''|replace('', 'x')", "'ab'|replace('', 'x', 2)",
      "missing|default('d')", "missing|d('d')", "e|default('d')",
      "e|default('d', true)", "none_|default('d')", "none_|default('d', true)",
      "missing|default", "missing.x|default('d')", "d.q|default([])",
      "x|default(missing.y)", "x|default(value=1)", "f|default('z', boolean=true)",
      "l|first", "l|last", "el|first", "el|last", "s|first", "s|last",
      "d|first", "none_|first", "(el|first) is undefined", "missing|first",
      "l|list", "s|list", "d|list", "missing|list", "none_|list", "u|list",
      "l|join", "l|join(',')", "['a', none, 1.5]|join('-')", "s|join('.')",
      "d|join(',')", "missing|join(',')", "none_|join", "el|join(',')",
      "m|join(',', attribute='role')", "l|join(1)", "5|join",
      "l|reverse|list", "s|reverse", "u|reverse", "d|reverse|list",
      "l|sort", "l|sort(reverse=true)", "words|sort", "words|sort(false, true)",
      "words|sort(case_sensitive=true)", "words|sort(true)",
      "m|sort(attribute='content')|map(attribute='content')|list",
      "m|sort(attribute='role')|map(attribute='content')|list",
      "m|sort(attribute='role,content', reverse=true)|map(attribute='content')|list",
      "[1, 'a']|sort", "[none]|sort", "missing|sort", "'bca'|sort",
      "{'b': 1, 'a': 2, 'C': 0}|dictsort", "{'b': 1, 'a': 2}|dictsort(by='value')",
      "{'b': 1, 'a': 2}|dictsort(false, 'value', true)", "l|dictsort",
      "{'b': 1, 'a': 2, 'C': 0}|dictsort(true)", "ed|dictsort", "{'a':1}|dictsort(by='x')",
      "[1, 2, 1, 1.0]|unique|list", "words|unique|list",
      "words|unique(true)|list", "m|unique(attribute='role')|map(attribute='content')|join",
      "[[1], [1]]|unique|list", "m|map(attribute='role')|list",
      "m|map(attribute='n')|list", "m|map(attribute='n', default=0)|list",
      "m|map(attribute='role.x')|list", "[[1,2],[3]]|map(attribute=0)|list",
      "[[1,2],[3]]|map(attribute='0')|list", "[{'a':{'b':1}}]|map(attribute='a.b')|list",
      "l|map('string')|list", "words|map('upper')|list", "l|map('default', 3)|list",
      "words|map('replace', 'p', 'P')|list", "l|map('nope')|list", "l|map|list",
      "l|map()|list", "none_|map('string')|list", "l|map('string')|join",
      "l|map(attribute='x', foo=1)|list", "l|map('string') is true",
      "1 if el|map('string') else 2", "l|map('string')|length", "l|map('string')|first",
      "l|map('string')|last", "l|select|list", "[0, 1, '']|select|list",
      "[0, 1, '']|reject|list", "l|select('odd')|list", "l|reject('odd')|list",
      "l|select('gt', 2)|list", "l|select('divisibleby', 2)|list", "l|select('nope')|list",
      "m|selectattr('n')|list", "m|selectattr('n', 'defined')|list",
      "m|rejectattr('n')|map(attribute='content')|list",
      "m|selectattr('role', 'equalto', 'user')|map(attribute='content')|list",
      "m|selectattr('role', '==', 'user')|list|length",
      "m|rejectattr('role', 'eq', 'user')|list", "m|selectattr('role', 'in', ['user'])|list|length",
      "m|selectattr|list", "m|selectattr('role.x')|list", "1 if m|selectattr('zz') else 2",
      "(m|selectattr('n')|list)[0].content", "m|selectattr('n')|first",
      "d|items|list", "ed|items|list", "missing|items|list", "l|items|list",
      "5|int", "'5'|int", "' 42 '|int", "'x'|int", "'x'|int(7)", "'4.9'|int",
      "4.9|int", "-4.9|int", "none_|int", "none_|int(3)", "missing|int",
      "'1_000'|int", "'ff'|int(0, 16)", "'0x1f'|int(0, 16)", "'0b11'|int(0, 2)",
      "true|int", "[]|int(1)", "'1e3'|int", "''|int", "'-5'|int", "'+5'|int",
      "'5'|float", "'x'|float", "'x'|float(1.5)", "5|float", "'1e3'|float",
      "' 2.5 '|float", "none_|float", "'inf'|float", "'nan'|float", "'0x10'|float",
      "-5|abs", "5.5|abs", "-5.5|abs", "'a'|abs", "-1|abs", "true|abs",
      "'a\\nb\\n\\nc'|indent", "'a\\nb\\n\\nc'|indent(2)", "'a\\nb'|indent(2, true)",
      "'a\\n\\nb'|indent(2, false, true)", "'a\\nb'|indent('>> ')", "'a'|indent(first=true)",
      "''|indent", "'\\n'|indent", "'a\\r\\nb\\x0bc'|indent(1)", "'a\\n'|indent(2)|tojson",
      "'a\\nb\\n'|indent(width=1, blank=true)|tojson", "5|indent",
      "x|nonsense", "s|upper|lower|length", "(s ~ 'x')|upper", "s ~ 'x'|upper",
      "-1|string + 'a'", "x + 2|string|length", "s|upper()|lower()",
      "[1,2]|length + 1", "not el|length", "m|length - 1",
      "missing.x|length", "l|trim")

# tojson
exprs("d|tojson", "l|tojson", "s|tojson", "u|tojson", "q|tojson", "none_|tojson",
      "t|tojson", "y|tojson", "1.0|tojson", "fl|tojson", "missing|tojson",
      "d|tojson(indent=2)", "d|tojson(indent=4)", "d|tojson(2)", "d|tojson(true)",
      "u|tojson(true)", "u|tojson(ensure_ascii=True)", "'\\x7f\\x80'|tojson(true)",
      "d|tojson(indent=0)", "d|tojson(indent='\\t')", "[]|tojson(indent=2)",
      "{}|tojson(indent=2)", "[[], {}]|tojson(indent=2)", "[[1], {'a': []}]|tojson(indent=1)",
      "d|tojson(separators=(',', ':'))", "d|tojson(separators=[',', ':'])",
      "d|tojson(separators=(',', ':'), indent=1)", "d|tojson(separators=(','))",
      "{'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true)",
      "{1: 'a', true: 'b', none: 'c', 1.5: 'd'}|tojson", "(1, 2)|tojson",
      "'\\n\\t\\b\\f\\r\\x01'|tojson", "'</script>'|tojson", "'\\u2028'|tojson",
      "{(1,): 2}|tojson", "{1: 2, 'a': 3}|tojson(sort_keys=true)",
      "namespace()|tojson", "range|tojson", "m|tojson", "m[0]|tojson|length",
      "'a'|tojson ~ 'b'", "(1e309)|tojson", "(-1e309)|tojson", "d|tojson(indent=-1)",
      "d|tojson(indent=none)", "d|tojson(nope=1)", "d|tojson|safe",
      "m|map(attribute='role')|tojson", "m|map(attribute='role')|list|tojson")
exprs("'[1, 2.0, {\"a\": null}]'|from_json", "'\"x\"'|from_json", "'{'|from_json",
      "('{\"a\": {\"b\": 1}}'|from_json).a.b", "5|from_json", "''|from_json",
      "'{\"b\": 1, \"a\": 2}'|from_json|tojson", "'[1,]'|from_json")

# methods
exprs("s.upper()", "u.upper()", "'ÀÉ'.lower()", "s.title()", "\"it's a-b c1d\".title()",
      "s.capitalize()", "ws.strip()", "ws.lstrip()", "ws.rstrip()",
      "'xyaxy'.strip('xy')", "'xyaxy'.lstrip('yx')", "'xyaxy'.rstrip('y')",
      "s.strip('')", "'äaä'.strip('ä')", "s.strip(none)", "s.strip(5)",
      "'\\u00a0a\\u3000'.strip()", "'a,b,,c'.split(',')", "'a b  c '.split()",
      "'a,b,c'.split(',', 1)", "'a b c'.split(none, 1)", "' a  b '.split(none, 1)",
      "'a,b'.split(sep=',')", "'a,b,c'.split(',', maxsplit=1)", "'a--b--c'.split('--')",
      "''.split(',')", "''.split()", "'abc'.split('')", "'a'.split(5)", "'a,b,c'.split(',')[-1]",
      "'a,b,c'.split(',', 0)", "' a b'.split(none, 0)", "'aXXXb'.split('XX')",
      "'a,b,c'.rsplit(',', 1)", "'a,b,c'.rsplit(',')", "'aXXXb'.rsplit('XX', 1)",
      "'a\\nb\\r\\nc\\n'.splitlines()", "'a\\n\\nb'.splitlines(true)", "''.splitlines()",
      "'a\\x1cb\\u2028c'.splitlines()", "s.startswith('he')", "s.startswith('lo')",
      "s.endswith('lo')", "s.endswith(('x', 'lo'))", "s.startswith(('x',))", "s.startswith()",
      "s.startswith(5)", "s.startswith('')", "s.endswith('')", "s.startswith(['he'])",
      "s.replace('l', 'L')", "s.replace('l', 'L', 1)", "s.replace('', '_')",
      "s.replace('ll', '')", "s.replace('l', 5)", "s.replace(l, 5)", "s.find('l')", "s.find('z')",
      "u.find('漢')", "s.rfind('l')", "s.find('')", "s.rfind('')", "s.count('l')", "'aaa'.count('aa')",
      "s.count('')", "s.isdigit()", "'123'.isdigit()", "''.isdigit()", "'-'.join(['a', 'b'])",
      "'-'.join([1])", "', '.join(words)", "'-'.join('abc')", "s.removeprefix('he')",
      "s.removesuffix('lo')", "s.removeprefix('x')", "s.nope()", "s.upper().lower()",
      "s.upper(1)", "(s ~ u).split('l')", "'a'.upper().b.c", "'ab'.split('b')[0].split('a')",
      "l.append(6)", "l.pop()", "l.pop(0)", "l.pop(-2)", "l.pop(9)", "el.pop()", "l.append()",
      "s.lower().strip().split('l')|length", "x.upper()", "none_.strip()", "('a'|safe).upper()",
      "'Ω'.lower()", "'ж'.upper()", "'Ѐ'.lower()", "'ﬁ'.lower()", "'µ'.lower()",
      "'ÿ'.lower()", "'Ā'.lower()", "'ā'.upper()", "'Հ'.lower()", "'×÷'.upper()", "'ß'.upper()",
      "'ßa'.capitalize()", "'żółw'.title()", "'éa'.capitalize()", "'ά'.lower()")
case("{% set _ = l.append(9) %}{{ l }}")
case("{% set k = l %}{% set _ = k.append(9) %}{{ l }} {{ l.pop(0) }} {{ k }}")
case("{% set ns = namespace(ids=[]) %}{% for i in l %}{% set _ = ns.ids.append(i * 2) %}{% endfor %}{{ ns.ids }}{{ ns.ids.pop(0) }}{{ ns.ids }}")

# functions
exprs("range(3)|list", "range(1, 4)|list", "range(5, 0, -2)|list", "range(0)|list",
      "range(3, 1)|list", "range(1, 2, 0)", "range()", "range('a')", "range(1.5)", "range(3)|length",
      "range(3)[1]", "range(10)[-1]", "2 in range(3)", "range(3)|sort(reverse=true)", "range(200000)|length",
      "range(3)|join(',')", "range(3)|map('string')|join('-')", "dict(a=1, b=2)", "dict()", "dict({'a': 1}, b=2)",
      "dict(a=1).a", "dict({'a': 1}, a=2)", "namespace(a=1).a", "namespace({'a': 1}, b=2).b", "namespace().x",
      "namespace(a=1)['a']", "namespace(a=1)", "strftime_now('%Y-%m-%d')", "strftime_now('%d %b %Y %H:%M:%S')",
      "strftime_now('%-d %B, %A %j %%')", "strftime_now('')", "strftime_now('ä %Y')", "strftime_now()",
      "strftime_now(5)", "raise_exception('no: ' ~ x)", "raise_exception('two\\nlines')", "raise_exception(5)",
      "raise_exception()", "raise_exception('ä' * 30)", "'a' ~ raise_exception('b')", "f and raise_exception('x')",
      "t or raise_exception('x')", "1 if t else raise_exception('x')")

# if
for source in (
        "{% if t %}a{% endif %}", "{% if f %}a{% endif %}b", "{% if f %}a{% else %}b{% endif %}",
        "{% if f %}a{% elif t %}b{% else %}c{% endif %}", "{% if f %}a{% elif f %}b{% else %}c{% endif %}",
        "{% if f %}a{% elif f %}b{% elif t %}c{% endif %}", "{% if el %}a{% endif %}{% if l %}b{% endif %}",
        "{% if missing %}a{% else %}b{% endif %}", "{% if missing.x %}a{% endif %}", "{% if x == 1 and s %}y{% endif %}",
        "{% if not e %}y{% endif %}", "{% if t %}{% if f %}1{% else %}2{% endif %}{% endif %}",
        "{% if t %}{% set z = 1 %}{% endif %}{{ z }}", "{% if f %}{% set z = 1 %}{% endif %}{{ z }}",
        "{% if x %}{% set x = 5 %}{% endif %}{{ x }}", "{% if f %}{% set x = 5 %}{% endif %}{{ x }}",
        "{% if 1, 0 %}a{% endif %}", "{% if t %}", "{% if %}{% endif %}", "{% endif %}", "{% else %}", "{% if t %}{% endfor %}",
        "{% if t %}a{% else %}b{% else %}c{% endif %}", "{% if 0.0 %}a{% else %}b{% endif %}", "{% if 'a' if f %}a{% endif %}",
        # for
        "{% for i in l %}{{ i }}{% endfor %}", "{% for i in el %}x{% else %}none{% endfor %}",
        "{% for i in l %}{{ i }}{% else %}none{% endfor %}", "{% for c in s %}{{ c }}.{% endfor %}", "{% for c in u %}{{ c }}.{% endfor %}",
        "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
        "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}",
        "{% for a, b in [[1, 2], (3, 4), 'xy'] %}{{ a }}{{ b }}{% endfor %}", "{% for (a, b) in [[1, 2]] %}{{ a }}{{ b }}{% endfor %}",
        "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}", 
        "{% for a, b in [[1]] %}{% endfor %}", "{% for a, b in [[1, 2, 3]] %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}",
        "{% for i in l if i is odd %}{{ i }}{{ loop.index }}{% endfor %}", "{% for i in l if i > 9 %}x{% else %}no{% endfor %}",
        "{% for i in l if i > x and s %}{{ loop.last }}{% endfor %}", "{% for k, v in d.items() if k != 'b' %}{{ k }}{{ loop.length }}{% endfor %}",
        "{% for i in missing %}x{% else %}e{% endfor %}", "{% for i in none_ %}x{% endfor %}", "{% for i in 5 %}x{% endfor %}",
        "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}", "{% for i in [1, 2] + [3] %}{{ i }}{% endfor %}", "{% for i in l[1:] %}{{ i }}{% endfor %}",
        "{% for i in l[::-1] %}{{ i }}{% endfor %}", "{% for i in range(3) %}{{ i }}{% endfor %}", "{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
        "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }};{% endfor %}",
        "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}", "{% for i in l %}{{ loop.previtem is defined }}{{ loop.nextitem is undefined }};{% endfor %}",
        "{% for i in l %}{{ loop.depth }}{{ loop.depth0 }}{{ loop.nope }}{% endfor %}", "{% for i in l %}{% for j in [1, 2] %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }};{% endfor %}",
        "{% for i in [1, 2] %}{% for j in [loop.index] %}{{ j }}{% endfor %}{% endfor %}", "{% for i in l %}{% set z = i %}{% endfor %}{{ z }}",
        "{% set z = 0 %}{% for i in l %}{% set z = z + i %}{{ z }}{% endfor %}{{ z }}", "{% set z = 0 %}{% for i in l %}{{ z }}{% set z = i %}{{ z }}{% endfor %}",
        "{% for i in l %}{% if loop.first %}{% set z = i %}{% endif %}{{ z }}{% endfor %}", "{% for x in l %}{{ x }}{% endfor %}{{ x }}",
        "{% for i in l %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% if i == 3 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
        "{% for i in l %}{% break %}{% else %}e{% endfor %}", "{% for i in l %}{% continue %}{% else %}e{% endfor %}", "{% for i in l %}{% if i > 1 %}{% break %}{% endif %}{% else %}e{% endfor %}",
        "{% for i in l %}{% for j in l %}{% if j == 2 %}{% break %}{% endif %}{{ j }}{% endfor %}{{ i }}{% endfor %}", "{% break %}", "{% for i in l %}{% macro q() %}{% break %}{% endmacro %}{% endfor %}",
        "{% for i in l %}a{% else %}{% break %}{% endfor %}", "{% for i in l %}{% for j in el %}{% else %}{% break %}{% endfor %}{{ i }}{% endfor %}x",
        "{% for i in l %}{% filter upper %}a{% if i == 2 %}{% break %}{% endif %}{% endfilter %}{% endfor %}x", "{% for i in l %}{% set z %}a{% continue %}{% endset %}{% endfor %}x",
        "{% for i in l|map('string') %}{{ i }}{% endfor %}", "{% for m2 in m %}{{ m2.role }}:{{ m2['content'] }}{{ '' if loop.last else ', ' }}{% endfor %}",
        "{% for i in l %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}", "{% for true in l %}{% endfor %}", "{% for i.x in l %}{% endfor %}", "{% for i l %}{% endfor %}",
        "{% for i in l %}", "{% for i in l %}{{ loop }}{% break %}{% endfor %}" if False else "{% for i in loop %}{% endfor %}",
        "{{ loop }}{{ loop is defined }}", "{% for i in l %}{% set l = [] %}{{ i }}{% endfor %}{{ l }}", "{% for i in l %}{% set _ = l.append(1) if i < 3 %}{{ i }}{% if loop.index > 20 %}{% break %}{% endif %}{% endfor %}" if False else "x",
        "{% set g = l|map('string') %}{% for i in g %}{{ i }}{% endfor %}|{% for i in g %}{{ i }}{% endfor %}", "{% for k in 'ab' %}{% for k in 'cd' %}{{ k }}{% endfor %}{{ k }}{% endfor %}",
        # set
        "{% set a = 1 %}{{ a }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1, 2] %}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set a, b = 1 %}", "{% set (a, b) = 'xy' %}{{ b }}",
        "{% set a %}x{{ x }}y{% endset %}{{ a }}{{ a|length }}", "{% set a | upper %}x{{ s }}{% endset %}{{ a }}", "{% set a | replace('l', 'L') | length %}{{ s }}{% endset %}{{ a + 1 }}",
        "{% set a %}{% set b = 1 %}{% endset %}{{ b }}", "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}", "{% set ns = namespace() %}{% set ns.a %}t{% endset %}{{ ns.a }}",
        "{% set d.a = 1 %}", "{% set q.a = 1 %}", "{% set ns = namespace(c=0) %}{% for i in l %}{% set ns.c = ns.c + i %}{% endfor %}{{ ns.c }}", "{% set ns = namespace(a=1) %}{% set ns.a, z = 5, 6 %}{{ ns.a }}{{ z }}",
        "{% set x = 5 %}{{ x }}", "{% set true = 1 %}", "{% set a = %}", "{% set a == 1 %}", "{% set a.b.c = 1 %}", "{% set a = b = 1 %}", "{% set a %}x", "{% set a = missing %}{{ a is defined }}", "{% set a = missing.x %}", "{% set a = l %}{% set a = a + [6] %}{{ l }}{{ a }}",
        "{% set loop = 3 %}{{ loop }}", "{% set a = x if x else 'q' %}{{ a }}", "{% set a = 1 if f %}{{ a }}", "{% set a=1%}{{a}}", "{%set a='%}'%}{{a}}", "{{ '}}' }}", "{{ {'a': {'b': 1}}.a.b }}", "{{ {'a': {'b': 1}} }}", "{% set messages = m[1:] %}{{ messages|length }}",
        # macros
        "{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f(1) }}{{ f('x') }}", "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(a=5) }}{{ f(b=1, a=2) }}",
        "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}", "{% macro f(a=x, b=y) %}{{ a }}{{ b }}{% endmacro %}{{ f() }}", "{% macro f(a) %}{{ a is defined }}{% endmacro %}{{ f() }}", "{% macro f() %}{{ x }}{% endmacro %}{% set x = 9 %}{{ f() }}",
        "{% set z = 1 %}{% macro f() %}{{ z }}{% endmacro %}{% set z = 2 %}{{ f() }}", "{% macro f() %}{% set z = 5 %}{{ z }}{% endmacro %}{{ f() }}{{ z }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
        "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}", "{% macro f(a) %}{% endmacro %}{{ f(1, a=2) }}", "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, a=3) }}", "{% macro f(a) %}{{ varargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2) }}",
        "{% macro f(a) %}{{ kwargs }}{% endmacro %}{{ f(1, z=2) }}", "{% macro f() %} x {% endmacro %}{{ f()|trim|length }}", "{% macro f() %}a{% endmacro %}{{ f() ~ f() }}{{ f() + 'b' }}", "{% macro f() %}<{{ '<' }}>{% endmacro %}{{ f() }}", "{{ f2() }}{% macro f2() %}{% endmacro %}",
        "{% for i in l %}{% macro g() %}{{ i }}{% endmacro %}{{ g() }}{% endfor %}", "{% macro f() %}{% macro g() %}in{% endmacro %}{{ g() }}{% endmacro %}{{ f() }}{{ g is defined }}", "{% macro f(a, b) %}{{ b }}{% endmacro %}{{ f(b=1) }}", "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f %}{% endmacro %}",
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f('in') }}{{ x }}", "{% macro f(l) %}{% for i in l %}{{ i }}{% endfor %}{% endmacro %}{{ f([7]) }}{{ l }}", "{% macro f() %}{{ loop is defined }}{% endmacro %}{% for i in [1] %}{{ f() }}{% endfor %}", "{% macro f(a) %}{{ a.x }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}body{{ x }}{% endcall %}", "{% macro f(a) %}{{ a }}{{ caller(5) }}{% endmacro %}{% call(n) f(1) %}<{{ n }}>{% endcall %}", "{% macro f() %}{% endmacro %}{% call f() %}{% endcall %}", "{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}", "{% call x %}{% endcall %}", "{% macro f(l) %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) f(l) %}{{ i }}{{ x }},{% endcall %}", "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% set z = 1 %}{% endcall %}{{ z }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% call f() %}in{% endcall %}{% endcall %}", "{% macro f(d={}) %}{{ d }}{% endmacro %}{{ f() }}", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
        "{% macro f() %}{{ f }}{% endmacro %}{{ f is callable }}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{% macro f(a) %}{% set a = 2 %}{{ a }}{% endmacro %}{{ f(1) }}", "{% macro f(true) %}{% endmacro %}",
        # filter blocks, generation, raw, comments
        "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('l', 'L')|trim %} {{ s }} {% endfilter %}", "{% filter nonsense %}{% endfilter %}", "{% filter upper %}{% set z = 1 %}{% endfilter %}{{ z }}", 
        "{% filter upper %}a{% filter lower %}B{% endfilter %}c{% endfilter %}", "{% generation %}a{{ x }}{% endgeneration %}", "{% generation %}{% set z = 1 %}{% endgeneration %}{{ z }}", "{% for i in l %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}",
        "{% raw %}{{ x }}{% if %}{% endraw %}", "a{% raw -%}  {{ x }}  {%- endraw %}b", "{% raw %}\na\n{% endraw %}\nb", "{%- raw -%} x {% endraw -%} y", "{# c #}a", "a{# {{ x }} #}b", "{# a", "a {#- c -#} b", "a\n{# c #}\nb", "a\n  {# c #}\nb", "{##}a", "{#-#}a", "{# #} #}",
        # refused
        "{% include 'a' %}", "{% import 'a' as b %}", "{% extends 'a' %}", "{% do l.append(1) %}", "{% nonsense %}", "{% %}", "{{ }}", "{{", "{%", "{{ x", "{% if x", "{{ x }", "{{ x %}", "{{ (x }}", "{{ x) }}", "{{ [x) }}", "{{ 'x }}", "{{ x y }}", "{{ x | }}", "{{ x. }}", "{{ x[ }}", "{{ 1 + }}", "{{ + }}", "{{ * 1 }}", "{{ x is }}", "{{ if }}", "{{ a b }}", "{{ @ }}", "{{ x; y }}", "{{ a=1 }}", "{{ f(a=1, 2) }}", "{{ range(1 2) }}", "{{ {1} }}", "{{ {1: } }}", "{{ [1 2] }}", "{{ x ! y }}", "{{ $ }}", "{{ not }}", "{{ 1 not 2 }}", "{{ x not in }}", "{% set %}", "{% for %}", "{% macro %}", "{% call %}", "{% filter %}", "{% endfor %}", "{% endraw %}", "}}", "%}", "#}", "{", "{ {", "{ % x %}", "", "\n", "\n\n", "a\r\nb\rc\n", "{{ 1 }}{{ 2 }}", "{{1}}", "{{-1}}", "{{- 1 -}}", "{{ - 1 }}", "{{+1}}", "ä{{ x }}漢"):
    case(source)

# white space
for before in ("a", "a ", "a\n", "a\n  ", "  ", "\n", "", "a\n\n \t", "a\u00a0\n\u2003"):
    for tag in ("{% if t %}", "{%- if t %}", "{%+ if t %}", "{% if t -%}", "{% if t +%}", "{%- if t -%}"):
        case(before + tag + "\n  b\n" + before + "{% endif %}\n c")
    for tag in ("{{ x }}", "{{- x }}", "{{ x -}}", "{{- x -}}", "{{+ x }}", "{# c #}", "{#- c #}", "{# c -#}", "{#+ c +#}", "{#- c -#}"):
        case(before + tag + " \n  b")
        case(before + tag + "\n\n" + tag + "\n")
for source in ("{% if t %}\n\n{% endif %}\nx", "{% for i in l %}\n{{ i }}\n{% endfor %}\n", "{% for i in l -%}\n{{ i }}\n{%- endfor %}", "  {% set a = 1 %}  \n  {{ a }}\n", "{% if t %}  {% if t %}x{% endif %}  {% endif %}",
               "x {% if t %} y {% endif %} z", "  {%- set a = 1 -%}  x", "a\n  {%+ if t %}b{% endif %}", "a\n\t{% if t %}\n\tb\n\t{% endif %}\n", "{{ x }}\n", "{{ x }}\n\n", "{% set a = 1 %}\n\n\nx", "{% set a = 1 -%}\n\n\nx", "x\n\n\n{%- set a = 1 %}y",
               "{% set a %}\n x\n{% endset %}\n[{{ a }}]", "{% macro f() %}\n x\n{% endmacro %}\n[{{ f() }}]", "{% macro f() -%}\n x\n{%- endmacro %}\n[{{ f() }}]", "{{ x }} \n {{ y }}", "{% if t %}a{% endif %} {% if t %}b{% endif %}", "a {%- if t %} b {%- endif %} c", "{{ 'a' -}} b", "a {{- 'b' }}",
               "\n{% if t %}\n{% endif %}\n", "a\r\n{% if t %}\r\nb\r\n{% endif %}\r\n", "{#\n#}\n  {% if t %}a{% endif %}", "a{{ x }}\n  {% if t %}b{% endif %}", "a{% if t %}   {% endif %}b", "{% if t %}\n   {% endif %}", "   {% raw %}\n a {% endraw %}\n b", "{% if t\n%}\na\n{%\nendif\n%}\nb", "{{\nx\n}}\nb", "{{x}}{#c#}{{x}}", "{%if t%}a{%endif%}",
               "{% for i in l %}\n    {%- if i == 1 %}\n one\n    {%- elif i == 2 -%}\n    two\n    {%- else %}\n{{ i }}\n    {%- endif %}\n{%- endfor %}\n"):
    case(source)

# repr of what is inside
for value in ("a\u00a0b", "\u200b", "\ufeff", "\x85", "\U000e0001", "\u2028", "\xad", "é", "\U0001F642", "a'b\"c", "tab\t", "nul\u0000", "\x1b", "\ue000"):
    case("{{ [v] }}{{ v|tojson }}{{ v|tojson(ensure_ascii=true) }}", v=value)
for value in (0.1, 1e100, 1.5e-10, 123456.789, 1e21, 1e16, 9999999999999998.0, 0.0001, 0.00001, -0.0, 2.0 ** 63, 1 / 3, 100000.0, 1e-320, 4.35, 2.675, 1e15 + 0.5):
    case("{{ v }} {{ [v] }} {{ v|tojson }} {{ -v }} {{ v|string|length }}", v=value)
for value in (1.9, -1.9, 0.0, 1e15, -1e-300):
    case("{{ v|int }}", v=value)
exprs("'ab'|map('upper')|join", "0|map('upper')|list", "e|select|list", "0|reject|list", "1|select|list", "1|map('upper')|list",
      "'010'|int(0, 8)", "'0o17'|int(0, 8)", "'-0b11'|int(0, 2)", "'0b'|int(5, 2)", "'zz'|int(0, 36)", "'1e400'|int(3)", "1e309|int(3)", "(1e309 - 1e309)|int(3)",
      "' a b '.split(none, 0)", "'a b c '.split(none, 2)", "'a b '.split(none, 5)", "none_|indent", "missing|indent")
