# The chat page in headless Chromium, served by the demo's own configuration:
# type, see tokens arrive one after another, press stop, and the engine's job is
# gone.

use strict;
use warnings;
use utf8;

use Test::More;
use Time::HiRes 'sleep';

use Moe;
use Moe::Browser;

binmode Test::More->builder->$_, ':utf8' for qw(output failure_output);

my $moe = Moe->new;
$moe->mock('--quiet');
$moe->nginx(conf => demo_conf())->wait_ready;

my ($b, $why) = Moe::Browser->new($moe);
plan(skip_all => $why) unless $b;

# conf/demo/nginx.conf as serve.sh would fill it in.
sub demo_conf {
    my $conf = Moe::slurp("$Moe::root/conf/demo/nginx.conf");
    my %word = (BUILD => $Moe::build, RUN => '%%DIR%%', PORT => '%%PORT%%',
                SOCKET => '%%DIR%%/engine.sock',
                WWW => "$Moe::root/conf/demo/www");
    $conf =~ s/\@(\w+)\@/$word{$1} \/\/ die "no such word: $1"/ge;
    return ($> == 0 ? "user root;\n" : '') . $conf;
}

sub shows {
    my ($what, $script, @args) = @_;
    ok(eval { $moe->until($what, sub { $b->js($script, @args) }, 30) }, $what)
        or diag($@, 'page: ', $b->js('return document.body.innerText'));
}

sub ask {
    my $text = shift;
    $b->type('#question', $text);
    $b->click('#send');
}

# The last answer's parts.
my $last = "[...document.querySelectorAll('.answer')].at(-1)";
my $idle = "return document.querySelector('#stop').hidden";

$b->go('http://127.0.0.1:' . $moe->port . '/');
shows('the page has the model\'s name',
      "return document.querySelector('#model').textContent === 'mock'");
is($b->js("return document.activeElement.id"), 'question',
   'the reader can type at once');
ok($b->js("return document.querySelector('#send').disabled"),
   'nothing to send yet');


# -- an answer -------------------------------------------------------------

# The page itself notes what a reader could see at each change.
$b->js(<<'JS');
window.seen = [];
new MutationObserver(() => {
    const a = document.querySelector('.answer');
    if (a) seen.push([a.querySelector('.thought div').textContent.length,
                      a.querySelector('.text').textContent.length,
                      a.querySelector('.thought').open]);
}).observe(document.querySelector('#turns'),
           { subtree: true, childList: true, characterData: true });
JS
$b->type('#question', "mock reasoning=20 tokens=40 delay_ms=20\x{E007}");
shows('the answer ends', "return $last && document.querySelector('#stop').hidden");
my (%thought, %text, $open, $folded);
for (@{ $b->js('return seen') }) {
    my ($t, $a, $o) = @$_;
    $thought{$t} = $text{$a} = 1;
    $open ||= $o && $t && !$a;
    $folded ||= !$o && $a;
}
cmp_ok(keys %thought, '>', 4, 'the thought grows under the reader\'s eyes');
cmp_ok(keys %text, '>', 8, 'the answer grows under the reader\'s eyes');
ok($open, 'the thought is open while it is thought');
ok($folded, 'and is folded when the answer starts');
is($b->text('.answer .text'), join(' ', map { "w$_" } 0 .. 39),
   'every token of the answer is there, once');
like($b->text('.thought summary'), qr/^Thought for \d+\.\d s$/,
     'how long it thought');
like($b->text('.figures'),
     qr{^\d+\.\d s to first token · [\d.]+ tokens/s · 60 tokens$}, 'figures');

$b->click('.thought summary');
is($b->text('.thought div') =~ s/\s+$//r, join(' ', map { "r$_" } 0 .. 19),
   'the thought can be unfolded');


# -- stop ------------------------------------------------------------------

ask('mock tokens=100000 delay_ms=20');
shows('tokens of a long answer',
      "return $last.querySelector('.text').textContent.length > 20");
ok($moe->busy, 'the engine works on it');
$b->click('#stop');
ok(eval { $moe->until('end of the job', sub { !$moe->busy }) },
   'stop: the engine\'s job is gone') or diag $@;
shows('the page says that it was stopped',
      "return /stopped/.test($last.querySelector('.figures').textContent)");

ask('mock tokens=3');
shows('the next question is answered', "return $last"
      . ".querySelector('.text').textContent.trim() === 'w0 w1 w2'");

ask('mock tokens=100000 delay_ms=20');
shows('another long answer',
      "return $last.querySelector('.text').textContent.length > 20");
$b->go('about:blank');
ok(eval { $moe->until('end of the job', sub { !$moe->busy }, 40) },
   'leaving the page ends the engine\'s job, in a while') or diag $@;
$b->go('http://127.0.0.1:' . $moe->port . '/');
shows('the answer that nobody waited for was not kept',
      "return /was lost/.test($last.querySelector('.problem p').textContent)");


# -- lost and found --------------------------------------------------------

ask('mock tokens=150 delay_ms=20');
shows('a longer answer',
      "return $last.querySelector('.text').textContent.length > 20");
$b->go('http://127.0.0.1:' . $moe->port . '/');
shows('the page is loaded again: the answer goes on',
      "return $last && !document.querySelector('#stop').hidden");
shows('to its end', "$idle && $last.querySelector('.text').textContent.trim()"
      . " === '" . join(' ', map { "w$_" } 0 .. 149) . "'");

ask('mock tokens=150 delay_ms=20');
shows('another one',
      "return $last.querySelector('.text').textContent.length > 20");
# The kernel tells NGINX of it as of nothing else.
$moe->allow_log(qr/recv\(\) failed \(103/);
kill 'HUP', $moe->{master};
system 'ss', '-K', 'src', '127.0.0.1', 'sport', '=', $moe->port
    if Moe::find('ss');
shows('connections that are lost are not missed',
      "$idle && $last.querySelector('.text').textContent.trim() === '"
      . join(' ', map { "w$_" } 0 .. 149) . "'");
$b->click('#new-chat');
$b->type('#question', "mock reasoning=20 tokens=40 delay_ms=1\x{E007}");
shows('a new chat', "$idle && $last.querySelector('.text').textContent");
ask('mock tokens=100000 delay_ms=20');
shows('is begun',
      "return $last.querySelector('.text').textContent.length > 20");
$b->click('#stop');


# -- kept ------------------------------------------------------------------

$b->go('http://127.0.0.1:' . $moe->port . '/');
is($b->js("return document.querySelectorAll('.answer').length"), 2,
   'the conversation is there again');
is($b->text('.answer .text'), join(' ', map { "w$_" } 0 .. 39),
   'with its answers');
ok($b->js("return /stopped/.test($last.querySelector('.figures')"
          . '.textContent)'), 'the answer that was cut short says so');


# -- what goes wrong -------------------------------------------------------

my $problem = "return $last.querySelector('.problem p')";
ask('mock error=busy');
shows('a refusal is shown, and when to come back',
      "return /^busy\\. Try again in \\d+ s\\.\$/.test(" . ($problem =~ s/return //r)
      . ".textContent)");
ask('mock tokens=20 delay_ms=5 at=5 error=internal');
shows('an error in the middle is shown, with what had come',
      "$problem.textContent === 'internal.'"
      . " && /^w0 w1/.test($last.querySelector('.text').textContent)");
ok(!$b->js("return $last.querySelector('.problem button').hidden"),
   'the reader can try again');
my $asked = "performance.getEntriesByType('resource')"
            . ".filter((e) => /chat.completions/.test(e.name)).length";
my $before = $b->js("return $asked");
$b->click('.answer:last-child .problem button');
shows('trying again asks again', "return $asked > $before");
shows('and ends', $idle);

$moe->allow_log(qr/the engine is gone/);
ask('mock tokens=20 delay_ms=20 at=5 close');
shows('of an engine that goes away in the middle nothing is seen',
      "$idle && !$last.querySelector('.problem p')?.textContent && $last"
      . ".querySelector('.text').textContent.trim() === '"
      . join(' ', map { "w$_" } 0 .. 19) . "'");
$moe->wait_ready;


# -- markup ----------------------------------------------------------------

# The mock says the request back, and so the page shows its own question.
ask('<img src=x onerror=alert(1)><script>alert(2)</script> **b** mock echo');
shows('an answer full of markup',
      "return /onerror/.test($last.querySelector('.text').textContent)");
is($b->js("return document.querySelectorAll('.text img, .text script').length"),
   0, 'text of the model does not become markup');
shows('and is done', $idle);

is_deeply($b->js(<<'JS'), ['P', 'UL', 'FIGURE', 'H5', 'strong', 'code'],
return import('./markdown.js').then(({ show }) => {
    const e = document.createElement('div');
    const text = 'a **b** `c`\n\n- one\n- two\n  1. inner\n\n'
        + '```c\nint x;\n```\n## h';
    for (let n = 0; n <= text.length; n++) show(e, text.slice(0, n));
    return [...[...e.children].map((c) => c.tagName),
            ...['strong', 'code'].filter((t) => e.querySelector(`p ${t}`))];
});
JS
   'Markdown, one character after another');


# -- for everybody ---------------------------------------------------------

is_deeply($b->js(<<'JS'), [], 'every control has a name');
return [...document.querySelectorAll('button, input, textarea, summary')]
    .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim()
                     || e.labels && [...e.labels].some((l) => l.textContent)))
    .map((e) => e.outerHTML);
JS

for my $width (320, 390, 1200) {
    $b->cdp('Emulation.setDeviceMetricsOverride', { width => $width,
        height => 700, deviceScaleFactor => 1, mobile => JSON::PP::false });
    ok($b->js('return document.documentElement.scrollWidth <= innerWidth'),
       "$width pixels are wide enough");
}

for my $scheme ('light', 'dark') {
    $b->cdp('Emulation.setEmulatedMedia', { features => [
        { name => 'prefers-color-scheme', value => $scheme } ] });
    # WCAG 2, 1.4.3: contrast of text that is read.
    my $low = $b->js(<<'JS');
const lum = (c) => c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
const rgb = (s) => s.match(/[\d.]+/g).map(Number);
const behind = (e) => {
    for (; e; e = e.parentElement) {
        const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
};
return ['.asked p', '.thought summary', '.thought div', '.text', '.figures',
        '.problem p', '#model', '.note'].filter((s) => {
    const e = document.querySelector(s);
    const [a, b] = [lum(rgb(getComputedStyle(e).color).slice(0, 3)),
                    lum(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
});
JS
    is_deeply($low, [], "$scheme: every text has contrast 4.5");
}

$b->click('#new-chat');
is($b->js("return document.querySelectorAll('.answer').length"), 0,
   'a new chat is empty');
ok(!$b->js("return document.querySelector('#welcome').hidden"),
   'and welcomes');


# -- the demo model --------------------------------------------------------

SKIP: {
    skip 'the engine or the demo model is not built', 3 unless Moe->can_engine;
    my $real = Moe->new;
    $real->engine;
    $real->nginx(conf => demo_conf())->wait_ready;
    $b->go('http://127.0.0.1:' . $real->port . '/');
    ask('What is 347 + 285?');
    shows('the demo model answers',
          "return $last && document.querySelector('#stop').hidden");
    like($b->text('.answer .text'), qr/\b632\b/, 'rightly');
    like($b->text('.thought summary'), qr/^Thought for/, 'after some thought');
    $real->stop;
}

# Failed requests above are on the console; anything else is a bug.
is(join("\n", grep { !/Failed to load resource|ERR_INCOMPLETE/ } $b->console),
   '', 'nothing on the console');

$b->quit;
$moe->done;
