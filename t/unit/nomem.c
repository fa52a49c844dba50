/*
 * Every allocation of the parsers fails once: they then say that there is no
 * memory, or do without, and nothing is left behind.  The linker sends all
 * allocations of the engine here (see the Makefile).  jansson's are counted,
 * but do not fail: it has assertions that then do.
 */
#include "json_util.h"
#include "safetensors.h"
#include "template/template.h"
#include "tokenizer/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);

static long n_left = -1;        /* allocations that work; < 0: all do */
static int  once;               /* the others work again */
static long n_live;
static char dir[] = "/tmp/moe-nomem-XXXXXX";


static int
fails(void)
{
    int now = n_left == 0;

    n_left -= n_left > 0 || (now && once);

    return now;
}


static void *
count_malloc(size_t n)
{
    void *p = __real_malloc(n);

    n_live += p != NULL;

    return p;
}


void *
__wrap_malloc(size_t n)
{
    void *p = fails() ? NULL : __real_malloc(n);

    n_live += p != NULL;

    return p;
}


void *
__wrap_calloc(size_t n, size_t size)
{
    void *p = fails() ? NULL : __real_calloc(n, size);

    n_live += p != NULL;

    return p;
}


void *
__wrap_realloc(void *old, size_t n)
{
    void *p = fails() ? NULL : __real_realloc(old, n);

    n_live += p != NULL && old == NULL;

    return p;
}


void
__wrap_free(void *p)
{
    n_live -= p != NULL;
    __real_free(p);
}


/* What is tried: 0, or -1 and e. */
typedef int (*try_fn)(struct err *e);


static void
each_fails_so(try_fn try)
{
    struct err e;
    int        rc = -1;
    long       n = 0;

    do {
        long live = n_live;

        e.text[0] = '\0';
        n_left = n++;
        rc = try(&e);

        int reached = n_left <= 0;

        n_left = -1;

        if (n_live != live) {
            print_error("allocation %ld: %ld more than before\n", n,
                        n_live - live);
        }

        assert_int_equal(n_live, live);
        assert_true(rc == 0 || e.text[0] != '\0');
        rc = reached ? -1 : rc;
    } while (rc != 0);

    assert_true(n > 1);
}


/* The first allocation fails, then the second, ...; alone, and with all that
 * follow. */
static void
each_fails(try_fn try)
{
    struct err e;

    assert_int_equal(try(&e), 0);       /* what is made once is made now */

    for (once = 0; once < 2; once++) {
        each_fails_so(try);
    }
}


static void
write_file(const char *name, const void *p, size_t n)
{
    char  path[64];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}


static void
remove_file(const char *name)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path);
}


/* Load, encode, decode. */
static int
try_tokenizer(struct err *e)
{
    static const char text[] = "ab <s> word caf\xc3\xa9 1234 \xe6\xbc\xa2 \xff "
                               "e\xcc\x81 abababababababababababababababababab";

    struct tokenizer *t = tokenizer_load(dir, e);
    struct tokens     ids = { 0 };
    struct buf        out = { 0 };
    struct detok      d = { 0 };
    int               rc = t == NULL ? -1
                           : tokenizer_encode(t, text, sizeof(text) - 1,
                                              TOKENIZER_ADDED | TOKENIZER_BOS,
                                              &ids, e);

    for (size_t i = 0; i < ids.n && rc == 0; i++) {
        if (detok_step(&d, t, ids.ids[i], 1, &out) != 0) {
            rc = err_set(e, "no memory to decode");
        }
    }

    tokens_free(&ids);
    buf_free(&out);
    tokenizer_free(t);

    return rc;
}


static void
tokenizer_json(void **state)
{
    static const char json[] =
        "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
        "{\"type\":\"NFC\"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":"
        "\"x+\"},\"content\":\"y\"},{\"type\":\"Prepend\",\"prepend\":\"_\"}]},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}|\\\\s\"},"
        "\"behavior\":\"Isolated\",\"invert\":false},"
        "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":"
        "\"always\",\"split\":false}]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"u\","
        "\"byte_fallback\":true,"
        "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<0xC3>\":3,\"abab\":4,\"u\":5},"
        "\"merges\":[\"a b\",[\"ab\",\"ab\"]]},"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
        "{\"type\":\"Replace\","
        "\"pattern\":{\"String\":\"_\"},\"content\":\" \"},"
        "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
        "\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
        "\"special_tokens\":{\"<s>\":{\"ids\":[6]}}},"
        "\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true},"
        "{\"id\":7,\"content\":\"word\",\"single_word\":true,"
        "\"normalized\":true,\"lstrip\":true,\"rstrip\":true}]}";
    static const char config[] =
        "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"u\"},"
        "\"add_bos_token\":true,\"added_tokens_decoder\":{\"8\":{\"content\":"
        "\"caf\\u00e9\"}}}";

    (void) state;
    write_file("tokenizer.json", json, sizeof(json) - 1);
    write_file("tokenizer_config.json", config, sizeof(config) - 1);
    each_fails(try_tokenizer);
    remove_file("tokenizer.json");
    remove_file("tokenizer_config.json");
}


/* All bytes in their order, as base64 of one byte each. */
static void
rank_files(void **state)
{
    static const char        set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl"
                                     "mnopqrstuvwxyz0123456789+/";
    static const char *const names[] = { "qwen.tiktoken", "tiktoken.model" };
    struct buf               b = { 0 };

    (void) state;

    for (int i = 0; i < 256; i++) {
        buf_addf(&b, "%c%c== %d\n", set[i >> 2], set[i << 4 & 63], i);
    }

    buf_adds(&b, "YWI= 256\nYWJhYg== 257\n");

    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        write_file(names[i], b.p, b.n);
        each_fails(try_tokenizer);
        remove_file(names[i]);
    }

    buf_free(&b);
}


static int
try_template(struct err *e)
{
    static const struct template_limits limits = { 100000, 100000 };

    struct buf       src = { 0 }, out = { 0 };
    struct template *t = NULL;
    json_t          *vars = json_pack("{s:[{s:s,s:s},{s:s,s:s}],s:s,s:b}",
                                      "messages", "role", "user", "content",
                                      "Hi <b> \xc3\xa4", "role", "assistant",
                                      "content", "yo", "bos_token", "<s>",
                                      "add_generation_prompt", 1);
    int              rc = vars == NULL ? err_set(e, "no memory")
                          : template_find(dir, &src, e);

    if (rc == 0) {
        t = template_compile(src.p, src.n, e);
        rc = t == NULL ? -1 : template_render(t, vars, &limits, &out, e);
    }

    template_free(t);
    json_decref(vars);
    buf_free(&src);
    buf_free(&out);

    return rc;
}


static void
chat_template(void **state)
{
    static const char source[] =
        "{%- set ns = namespace(n=0, l=[1, 2]) -%}"
        "{%- macro m(a, b='x') %}{{ a ~ b | upper }}{% endmacro -%}"
        "{{ bos_token }}{% for m2 in messages if m2.role != 'tool' %}"
        "{%- set ns.n = ns.n + 1 %}{{ loop.index }}{{ m2 | tojson(indent=2) }}"
        "{{ m(m2['content'].split(' ')[0], b=m2.role) }}"
        "{{ m2.items() | list | string | length }}{% endfor %}"
        "{{ messages | map(attribute='role') | join(', ') }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list }}"
        "{{ ns.l | sort(reverse=true) }}{{ 'a b' | replace('a', 'c') | title }}"
        "{% if add_generation_prompt %}<think>{{ strftime_now('%Y') | int }}"
        "{% endif %}{% set block %}{{ ns.n }}{% endset %}{{ block | trim }}"
        "{{ {'b': 1, 'a': [ns.n]} | dictsort }}{{ ('x' * 40).strip('x') }}";

    (void) state;
    write_file("chat_template.jinja", source, sizeof(source) - 1);
    each_fails(try_template);
    remove_file("chat_template.jinja");
}


static int
try_safetensors(struct err *e)
{
    struct safetensors *s = safetensors_open(dir, e);

    safetensors_close(s);

    return s == NULL ? -1 : 0;
}


static void
tensor_files(void **state)
{
    static const char header[] =
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[8,12]}}";
    static const char index[] =
        "{\"weight_map\":{\"a\":\"x1.safetensors\",\"b\":\"x1.safetensors\"}}";
    char              file[8 + sizeof(header) - 1 + 12] = { 0 };

    (void) state;
    file[0] = (char) (sizeof(header) - 1);
    memcpy(file + 8, header, sizeof(header) - 1);
    write_file("model.safetensors", file, sizeof(file));
    each_fails(try_safetensors);
    write_file("x1.safetensors", file, sizeof(file));
    write_file("model.safetensors.index.json", index, sizeof(index) - 1);
    each_fails(try_safetensors);
    remove_file("model.safetensors");
    remove_file("x1.safetensors");
    remove_file("model.safetensors.index.json");
}


static int
try_json(struct err *e)
{
    static const char text[] = "{\"a\":[1,2.5,true,null,\"\\u00e9\",],"
                               "\"b\":{\"c\":99999999999999999999}}";
    json_t *v = json_parse_lenient(text, sizeof(text) - 1, e);
    int     n = 0;

    json_get_bool(v, "a", &n, e);       /* an error that quotes the value */
    json_decref(v);

    return v == NULL ? -1 : 0;
}


static void
json_text(void **state)
{
    (void) state;
    each_fails(try_json);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokenizer_json),
        cmocka_unit_test(rank_files),
        cmocka_unit_test(chat_template),
        cmocka_unit_test(tensor_files),
        cmocka_unit_test(json_text)
    };

    json_set_alloc_funcs(count_malloc, __wrap_free);
    cmocka_set_message_output(CM_OUTPUT_TAP);

    if (mkdtemp(dir) == NULL) {
        return 1;
    }

    int rc = cmocka_run_group_tests(tests, NULL, NULL);

    rmdir(dir);

    return rc;
}
