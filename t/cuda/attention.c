/*
 * attention.c - attention over pages of keys, on the CUDA backend and by the
 * reference: pages dealt out in no order, that hold NaN where there is no key.
 */
#include "pair.h"

#define N_PAGES     240

/* Keys of three sequences, whose pages are dealt out in turn. */
struct keys {
    struct both     b;
    struct kv_store store[2];
    uint32_t        tables[3][N_PAGES / 3];
};


/* Of n columns, for positions 0 .. n_ctx - 1, put as prompts. */
static void
keys_make(struct keys *k, enum dtype dtype, uint32_t n,
          const uint32_t (*n_ctx)[3])
{
    uint32_t      row = backend_pad(n);
    size_t        n_kv = (size_t) N_PAGES * 2 * BACKEND_PAGE_TOK * row;
    struct tokens t;

    k->b = both_make(n_kv * dtype_bytes(dtype));
    EACH(b) {
        k->store[b] = (struct kv_store) {
            k->b.at[b], dtype, N_PAGES, 2, row
        };
    }

    /* What sequences before left in the pages may be anything. */
    unsigned char *left = malloc(k->b.n_bytes);

    assert_non_null(left);
    memset(left, 0xff, k->b.n_bytes);
    both_put(&k->b, left);
    free(left);

    for (uint32_t i = 0; i < N_PAGES; i++) {
        k->tables[i % 3][i / 3] = (i * 7) % N_PAGES;
    }

    for (uint32_t s = 0; s < 3; s++) {
        for (uint32_t pos = 0; pos < (*n_ctx)[s]; pos += t.batch.n_tok) {
            uint32_t    m = (*n_ctx)[s] - pos < 64 ? (*n_ctx)[s] - pos : 64;
            struct rows x = rows_make(m, n, n);

            for (uint32_t i = 0; i < m; i++) {
                t.ids[i] = 0;
                t.pos[i] = pos + i;
                t.pages[i] = k->tables[s];
            }

            t.batch = (struct batch) { m, t.ids, t.pos, t.pages, 0 };
            EACH(b) {
                OP(b, begin, &t.batch);
                OP(b, kv_put, &k->store[b], 1, tensor_of(&x, b), n);
            }
            rows_free(&x);
        }
    }
}


/* The last n_new of each sequence. */
static void
tokens_last(struct tokens *t, const struct keys *k,
            const uint32_t (*n_ctx)[3], const uint32_t (*n_new)[3])
{
    uint32_t n = 0;

    for (uint32_t s = 0; s < 3; s++) {
        for (uint32_t i = 0; i < (*n_new)[s] && (*n_ctx)[s] != 0; i++, n++) {
            assert_true(n < TOKENS);
            t->ids[n] = 0;
            t->pos[n] = (*n_ctx)[s] - (*n_new)[s] + i;
            t->pages[n] = k->tables[s];
        }
    }

    t->batch = (struct batch) { n, t->ids, t->pos, t->pages, 0 };
}


/* The same, one of each sequence after the other: no two that follow one
 * another share a table. */
static void
tokens_dealt(struct tokens *t, const struct keys *k,
             const uint32_t (*n_ctx)[3], const uint32_t (*n_new)[3])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < TOKENS; i++) {
        for (uint32_t s = 0; s < 3; s++) {
            if (i < (*n_new)[s] && (*n_ctx)[s] != 0) {
                t->ids[n] = 0;
                t->pos[n] = (*n_ctx)[s] - (*n_new)[s] + i;
                t->pages[n++] = k->tables[s];
            }
        }
    }

    t->batch = (struct batch) { n, t->ids, t->pos, t->pages, 0 };
}


/* Steps that repeat themselves, so far: each with addresses of its own. */
static int n_repeats;


struct mla_case {
    enum dtype dtype;
    uint32_t   n_heads;
    uint32_t   n_latent;
    uint32_t   n_rope;
    uint32_t   n_ctx[3];        /* of three sequences; 0: none */
    uint32_t   n_new;           /* tokens of each that ask */
};


/* Keys of all positions first, then the last n_new of each ask.  In the
 * emulation it returns how many kernels answered. */
static unsigned long
check_mla(const struct mla_case *k)
{
    uint32_t      n = k->n_latent + k->n_rope, row = backend_pad(n);
    uint32_t      n_new[3] = { k->n_new, k->n_new, k->n_new };
    struct keys   keys;
    struct tokens t;

    keys_make(&keys, k->dtype, n, &k->n_ctx);
    tokens_last(&t, &keys, &k->n_ctx, (const uint32_t (*)[3]) &n_new);

    uint32_t    n_tok = t.batch.n_tok;
    struct rows q = rows_make(n_tok, k->n_heads * row, k->n_heads * row);
    struct rows y = rows_make(n_tok, k->n_heads * row, k->n_heads * row);

    for (size_t i = 0; i < (size_t) n_tok * k->n_heads * row; i++) {
        q.host[i] = i % row < n ? q.host[i] : 0;
    }

    both_put(&q.b, q.host);

    unsigned long n_before = count_launches();

    EACH(b) {
        struct mla a = {
            .y = tensor_of(&y, b), .q = tensor_of(&q, b),
            .kv = &keys.store[b], .layer = 1, .n_heads = k->n_heads,
            .n_latent = k->n_latent, .scale = 2 / sqrtf((float) n)
        };

        OP(b, begin, &t.batch);
        backends[b]->ops->mla(backends[b], &a);
    }

    /* Between heads there is padding that neither writes. */
    rows_compare(&y, most_of(k->dtype), "mla, %u heads, %u + %u, context %u "
                 "%u %u", k->n_heads, k->n_latent, k->n_rope, k->n_ctx[0],
                 k->n_ctx[1], k->n_ctx[2]);

    unsigned long n_kernels = count_launches() - n_before;

    rows_free(&q);
    rows_free(&y);
    both_free(&keys.b);

    return n_kernels;
}


static void
test_mla(void **state)
{
    static const struct mla_case cases[] = {
        { DTYPE_F32, 3, 19, 6, { 70, 0, 1 }, 1 },
        { DTYPE_BF16, 3, 19, 6, { 1, 2, 0 }, 1 },
        { DTYPE_BF16, 4, 24, 8, { 65, 64, 130 }, 2 },
        { DTYPE_BF16, 20, 64, 16, { 300, 1, 65 }, 1 },
        { DTYPE_BF16, 16, 512, 64, { 200, 0, 0 }, 1 },
        { DTYPE_BF16, 5, 130, 30, { 129, 9, 0 }, 5 },
        { DTYPE_BF16, 5, 130, 30, { 140, 66, 77 }, 25 },
        /* Warpgroups: rows of one token, of some, of a part of its heads; a
         * sequence that ends with a page, one with a key of the next. */
        { DTYPE_BF16, 16, 512, 64, { 65, 1, 448 }, 1 },
        { DTYPE_BF16, 16, 512, 64, { 129, 66, 0 }, 4 },
        { DTYPE_BF16, 32, 512, 64, { 65, 0, 0 }, 2 },
        { DTYPE_BF16, 20, 512, 64, { 67, 0, 200 }, 5 },
        { DTYPE_BF16, 64, 512, 64, { 64, 333, 3 }, 2 },
        { DTYPE_BF16, 128, 512, 64, { 0, 131, 0 }, 2 },
        { DTYPE_BF16, 100, 512, 64, { 64, 0, 0 }, 1 },
        { DTYPE_BF16, 2, 512, 64, { 130, 200, 0 }, 70 },
        /* Parts that the last block adds up: of heads, and of warpgroups' rows,
         * that are not a multiple of 16; of a context that has fewer pages than
         * there are parts; of some tokens of one sequence. */
        { DTYPE_BF16, 21, 48, 8, { 700, 0, 0 }, 1 },
        { DTYPE_BF16, 5, 24, 8, { 640, 65, 0 }, 1 },
        { DTYPE_BF16, 16, 512, 64, { 300, 1, 0 }, 1 },
        { DTYPE_BF16, 11, 512, 64, { 400, 0, 0 }, 2 }
    };
    static const struct mla_case large[] = {
        { DTYPE_BF16, 16, 512, 64, { 5000, 77, 640 }, 1 },
        { DTYPE_BF16, 128, 512, 64, { 1111, 77, 0 }, 2 }
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        check_mla(&cases[i]);
    }

    for (size_t i = 0; i < BASE_COUNT(large) && !is_small(); i++) {
        check_mla(&large[i]);
    }
}


/* Keys are split where that is done sooner, 16 heads a block; and never where
 * sums have to have one order.  Parts are added up in a kernel of their own
 * where they are many bytes, or not in pieces of 16. */
static void
test_mla_splits(void **state)
{
    static const struct {
        struct mla_case k;
        unsigned long   n_kernels;
        unsigned long   n_mma;          /* without warpgroups */
    } cases[] = {
        { { DTYPE_BF16, 16, 22, 8, { 640, 0, 0 }, 1 }, 2, 2 },
        { { DTYPE_BF16, 64, 22, 8, { 640, 0, 0 }, 1 }, 1, 1 },
        { { DTYPE_BF16, 96, 22, 8, { 1500, 0, 0 }, 1 }, 2, 2 },
        { { DTYPE_BF16, 96, 22, 8, { 128, 0, 0 }, 1 }, 1, 1 },
        { { DTYPE_BF16, 16, 24, 8, { 640, 0, 0 }, 1 }, 1, 1 },
        { { DTYPE_BF16, 16, 512, 64, { 640, 0, 0 }, 1 }, 1, 1 },
        { { DTYPE_BF16, 32, 512, 64, { 640, 0, 0 }, 1 }, 2, 1 }
    };

    const char *name = getenv("MOE_TEST_BACKEND");
    int         never = name != NULL && strstr(name, "deterministic") != NULL;
    int         is_mma = name != NULL && strstr(name, "mma") != NULL;

    (void) state;

    if (!is_emulated()) {
        skip();
    }

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        unsigned long got = check_mla(&cases[i].k);
        unsigned long want = never ? 1 : is_mma ? cases[i].n_mma
                             : cases[i].n_kernels;

        if (got != want) {
            fail_msg("case %zu: expected %lu kernels, got %lu", i, want, got);
        }
    }
}


struct gqa_case {
    enum dtype dtype;
    uint32_t   n_heads;
    uint32_t   n_kv_heads;
    uint32_t   head;
    uint32_t   n_ctx[3];
    uint32_t   n_new[3];
};


/* Whose tokens are dealt, or not.  In the emulation it returns how many kernels
 * answered. */
static unsigned long
count_gqa(const struct gqa_case *k, int dealt)
{
    struct keys   keys;
    struct tokens t;

    keys_make(&keys, k->dtype, 2 * k->n_kv_heads * k->head, &k->n_ctx);
    (dealt ? tokens_dealt : tokens_last)(&t, &keys, &k->n_ctx, &k->n_new);

    uint32_t    n_tok = t.batch.n_tok, n = k->n_heads * k->head;
    struct rows q = rows_make(n_tok, n, n + 6);
    struct rows y = rows_poisoned(n_tok, n, n + 10);

    unsigned long n_before = count_launches();

    EACH(b) {
        struct gqa a = {
            .y = tensor_of(&y, b), .q = tensor_of(&q, b),
            .kv = &keys.store[b], .layer = 1, .n_heads = k->n_heads,
            .n_kv_heads = k->n_kv_heads, .head = k->head,
            .scale = 2 / sqrtf((float) k->head)
        };

        OP(b, begin, &t.batch);
        OP(b, gqa, &a);
    }

    rows_compare(&y, most_of(k->dtype), "gqa, %u heads to %u of %u, context "
                 "%u %u %u, new %u %u %u", k->n_heads, k->n_kv_heads, k->head,
                 k->n_ctx[0], k->n_ctx[1], k->n_ctx[2], k->n_new[0],
                 k->n_new[1], k->n_new[2]);

    unsigned long n_kernels = count_launches() - n_before;

    rows_free(&q);
    rows_free(&y);
    both_free(&keys.b);

    return n_kernels;
}


static void
check_gqa(const struct gqa_case *k)
{
    count_gqa(k, 0);
}


static void
test_gqa(void **state)
{
    /* FP32 and wide heads; few tokens; groups of more than 16; tokens with
     * neighbours, alone, and both; contexts in parts, of which some tokens of
     * a run have one less. */
    static const struct gqa_case cases[] = {
        { DTYPE_F32, 6, 2, 16, { 70, 0, 1 }, { 1, 0, 1 } },
        { DTYPE_BF16, 4, 2, 144, { 130, 2, 0 }, { 2, 1, 0 } },
        { DTYPE_BF16, 8, 1, 128, { 1, 2, 64 }, { 1, 1, 1 } },
        { DTYPE_BF16, 4, 4, 16, { 65, 64, 130 }, { 2, 2, 2 } },
        { DTYPE_BF16, 40, 2, 32, { 300, 1, 65 }, { 1, 1, 1 } },
        { DTYPE_BF16, 6, 2, 48, { 300, 130, 10 }, { 3, 2, 1 } },
        { DTYPE_BF16, 10, 2, 64, { 140, 66, 77 }, { 25, 1, 40 } },
        { DTYPE_BF16, 3, 3, 80, { 200, 300, 9 }, { 150, 1, 9 } },
        { DTYPE_BF16, 16, 2, 128, { 330, 65, 1 }, { 40, 1, 1 } },
        { DTYPE_BF16, 20, 1, 16, { 600, 12, 600 }, { 9, 12, 1 } },
        { DTYPE_BF16, 8, 1, 128, { 600, 12, 0 }, { 1, 1, 0 } },
        { DTYPE_BF16, 2, 1, 16, { 1160, 2200, 0 }, { 12, 1, 0 } }
    };
    /* Warpgroups: prompts of all lengths about a page and a tile; those that
     * go on from an odd place, and from the last key but one of a tile, which
     * only its first token does not have; sequences and tokens without a
     * neighbour in one block, the latter in parts, and the former, of which
     * some tokens have one less, and some blocks none, between others; groups
     * that fill its rows and that do not. */
    static const struct gqa_case wide[] = {
        { DTYPE_BF16, 1, 1, 64, { 63, 64, 65 }, { 63, 64, 65 } },
        { DTYPE_BF16, 1, 1, 128, { 128, 200, 129 }, { 128, 200, 2 } },
        { DTYPE_BF16, 8, 2, 64, { 264, 1, 127 }, { 64, 1, 63 } },
        { DTYPE_BF16, 8, 2, 64, { 256, 256, 259 }, { 2, 2, 5 } },
        { DTYPE_BF16, 8, 2, 128, { 128, 131, 128 }, { 2, 5, 2 } },
        { DTYPE_BF16, 8, 2, 128, { 193, 66, 451 }, { 65, 5, 3 } },
        { DTYPE_BF16, 6, 1, 64, { 7, 600, 140 }, { 1, 10, 23 } },
        { DTYPE_BF16, 12, 2, 128, { 300, 30, 1 }, { 46, 30, 1 } },
        { DTYPE_BF16, 16, 2, 128, { 331, 256, 70 }, { 40, 1, 2 } },
        { DTYPE_BF16, 8, 1, 64, { 5, 3, 640 }, { 5, 3, 128 } },
        { DTYPE_BF16, 64, 1, 64, { 131, 66, 0 }, { 7, 4, 0 } },
        { DTYPE_BF16, 2, 1, 64, { 2200, 2113, 9 }, { 150, 1, 5 } },
        { DTYPE_BF16, 16, 16, 64, { 2110, 255, 0 }, { 2, 255, 0 } },
        { DTYPE_BF16, 8, 1, 128, { 772, 258, 0 }, { 12, 4, 0 } },
        { DTYPE_BF16, 16, 1, 64, { 514, 400, 129 }, { 5, 1, 2 } },
        { DTYPE_BF16, 8, 1, 64, { 1000, 0, 30 }, { 40, 0, 30 } }
    };
    static const struct gqa_case large[] = {
        { DTYPE_BF16, 32, 4, 128, { 5000, 77, 640 }, { 1, 1, 1 } },
        { DTYPE_BF16, 32, 4, 128, { 1111, 777, 300 }, { 600, 1, 300 } },
        { DTYPE_BF16, 16, 16, 128, { 4000, 77, 0 }, { 30, 5, 0 } }
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        check_gqa(&cases[i]);
    }

    for (size_t i = 0; i < BASE_COUNT(wide); i++) {
        check_gqa(&wide[i]);
    }

    for (size_t i = 0; i < BASE_COUNT(large) && !is_small(); i++) {
        check_gqa(&large[i]);
    }
}


/* Tokens that have neighbours, and those that have none, are a kernel's each;
 * parts of runs, or too many for one block or its counters, are added up by one
 * more.  On a device of 64 multiprocessors. */
static void
test_gqa_kernels(void **state)
{
    static const struct {
        struct gqa_case k;
        int             dealt;
        unsigned long   n_kernels;
    } cases[] = {
        { { DTYPE_BF16, 8, 1, 80, { 640, 0, 0 }, { 1, 0, 0 } }, 0, 1 },
        { { DTYPE_BF16, 40, 1, 80, { 640, 9, 600 }, { 2, 1, 1 } }, 0, 1 },
        { { DTYPE_BF16, 6, 2, 80, { 640, 99, 300 }, { 4, 4, 4 } }, 1, 1 },
        { { DTYPE_BF16, 8, 1, 128, { 4300, 0, 0 }, { 1, 0, 0 } }, 0, 1 },
        { { DTYPE_BF16, 16, 1, 128, { 4000, 0, 0 }, { 1, 0, 0 } }, 0, 1 },
        { { DTYPE_BF16, 16, 1, 128, { 4300, 0, 0 }, { 1, 0, 0 } }, 0, 2 },
        { { DTYPE_BF16, 6, 2, 48, { 100, 99, 60 }, { 4, 4, 4 } }, 1, 1 },
        { { DTYPE_BF16, 6, 2, 48, { 100, 99, 60 }, { 4, 4, 4 } }, 0, 1 },
        { { DTYPE_BF16, 6, 2, 48, { 100, 99, 60 }, { 9, 1, 4 } }, 0, 2 },
        { { DTYPE_BF16, 2, 1, 80, { 640, 99, 257 }, { 4, 4, 9 } }, 0, 2 },
        { { DTYPE_BF16, 2, 1, 80, { 640, 99, 257 }, { 1, 4, 9 } }, 0, 3 },
        { { DTYPE_BF16, 16, 16, 64, { 9, 2110, 255 }, { 1, 2, 255 } }, 0, 3 },
        { { DTYPE_BF16, 8, 1, 128, { 772, 258, 0 }, { 12, 4, 0 } }, 0, 2 }
    };
    /* Blocks enough for warpgroups, where others' would be too long. */
    static const struct gqa_case many = {
        DTYPE_BF16, 16, 16, 64, { 2110, 255, 0 }, { 2, 255, 0 }
    };

    struct backend *was = backends[CUDA];
    const char     *name = getenv("MOE_TEST_BACKEND");
    int             never = name != NULL
                            && strstr(name, "deterministic") != NULL;
    struct err      e;

    (void) state;

    if (!is_emulated()) {
        skip();
    }

    emu_n_sm = 64;
    backends[CUDA] = backend_open(name != NULL ? name : "cuda", 2, 0, &e);
    assert_non_null(backends[CUDA]);
    emu_n_sm = 4;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        unsigned long got = count_gqa(&cases[i].k, cases[i].dealt);
        unsigned long want = never ? 1 : cases[i].n_kernels;

        if (got != want) {
            fail_msg("case %zu: expected %lu kernels, got %lu", i, want, got);
        }
    }

    assert_int_equal(count_gqa(&many, 0), name != NULL
                     && strcmp(name, "cuda:mma") == 0 ? 2 : 1);
    backends[CUDA]->ops->close(backends[CUDA]);
    backends[CUDA] = was;
}


/* Steps of as many tokens, of which all have neighbours, or none, or some: each
 * kind is replayed as its own. */
static void
test_gqa_replays(void **state)
{
    static const struct {
        uint32_t      n_new[3];
        int           dealt;
        unsigned long n_kernels;
    } steps[] = {
        { { 12, 0, 0 }, 0, 1 }, { { 6, 6, 0 }, 1, 1 }, { { 11, 1, 0 }, 0, 2 },
        { { 12, 0, 0 }, 0, 1 }, { { 1, 11, 0 }, 0, 2 }, { { 6, 6, 0 }, 1, 1 }
    };
    static const uint32_t n_ctx[3] = { 100, 99, 0 };
    const char   *name = getenv("MOE_TEST_BACKEND");
    int           never = name != NULL && strstr(name, "deterministic") != NULL;
    uint32_t      none = 0, n = 6 * 48;
    int           repeats = ++n_repeats;
    struct keys   keys;
    struct rows   q = rows_make(12, n, n), y = rows_poisoned(12, n, n);
    struct tokens t;

    (void) state;
    keys_make(&keys, DTYPE_BF16, 2 * 2 * 48, &n_ctx);

    for (size_t i = 0; i < BASE_COUNT(steps); i++) {
        unsigned long n_before = count_launches();

        (steps[i].dealt ? tokens_dealt : tokens_last)(&t, &keys, &n_ctx,
                                                      &steps[i].n_new);
        t.batch.repeats = repeats;

        EACH(b) {
            struct gqa a = { tensor_of(&y, b), tensor_of(&q, b),
                             &keys.store[b], 1, 6, 2, 48, 0.2f };

            OP(b, begin, &t.batch);
            OP(b, gqa, &a);
            OP(b, gather, a.y, a.q, &none, 0, 1);
        }

        rows_compare(&y, OP_BF16_MOST, "gqa, step %zu of 12 tokens", i);

        if (is_emulated() && count_launches() - n_before
                             != (never ? 1 : steps[i].n_kernels))
        {
            fail_msg("step %zu: expected %lu kernels, got %lu", i,
                     steps[i].n_kernels, count_launches() - n_before);
        }
    }

    rows_free(&q);
    rows_free(&y);
    both_free(&keys.b);
}


enum norm { NONE, EACH, WHOLE };

struct qkv_case {
    struct gqa_case gqa;
    enum norm       norm;       /* of each head, or all in one */
    int             interleaved;
    unsigned long   n_kernels;
};


static void
norm_heads(int b, struct tensor x, const struct rows *w, uint32_t n_heads,
           uint32_t n_tok, enum norm how)
{
    struct tensor y = { x.data, w->n };

    if (how != NONE) {
        OP(b, rmsnorm, y, y, w->b.at[b], 1e-3f,
           n_tok * (how == EACH ? n_heads : 1), w->n);
    }
}


/* The calls of a layer between its products: norms, rope, kv_put, rope, gqa. */
static void
check_qkv(const struct qkv_case *k)
{
    uint32_t      head = k->gqa.head, n_h = k->gqa.n_heads, none = 0;
    uint32_t      n_kv = k->gqa.n_kv_heads, n_q = n_h * head, n_k = n_kv * head;
    uint32_t      each = k->norm == EACH;
    struct keys   keys;
    struct tokens t;

    keys_make(&keys, k->gqa.dtype, 2 * n_k, &k->gqa.n_ctx);
    tokens_last(&t, &keys, &k->gqa.n_ctx, &k->gqa.n_new);
    t.batch.repeats = ++n_repeats;

    uint32_t    n_tok = t.batch.n_tok;
    struct rows q = rows_make(n_tok, n_q, n_q), x = rows_make(n_tok, n_k, n_k);
    struct rows kv = rows_make(n_tok, 2 * n_k, 2 * n_k + 2);
    struct rows angles = rows_make(n_tok, head, head + 2);
    struct rows w_q = rows_make(1, each ? head : n_q, each ? head : n_q);
    struct rows w_k = rows_make(1, each ? head : n_k, each ? head : n_k);
    struct rows y = rows_poisoned(n_tok, n_q, n_q);

    unsigned long n_before = count_launches();

    EACH(b) {
        struct rope rope_k = {
            tensor_of(&kv, b), tensor_of(&x, b), head, head,
            tensor_of(&angles, b), n_kv, head, k->interleaved
        };
        struct rope rope_q = {
            tensor_of(&q, b), tensor_of(&q, b), head, head,
            tensor_of(&angles, b), n_h, head, k->interleaved
        };
        struct gqa  a = {
            tensor_of(&y, b), rope_q.y, &keys.store[b], 1, n_h, n_kv, head,
            1 / sqrtf((float) head)
        };

        OP(b, begin, &t.batch);
        norm_heads(b, rope_q.x, &w_q, n_h, n_tok, k->norm);
        norm_heads(b, rope_k.x, &w_k, n_kv, n_tok, k->norm);
        OP(b, rope, &rope_k);
        OP(b, kv_put, &keys.store[b], 1, rope_k.y, 2 * n_k);
        OP(b, rope, &rope_q);
        OP(b, gqa, &a);
        OP(b, gather, tensor_of(&y, b), tensor_of(&q, b), &none, 0, 1);
    }

    rows_compare(&q, OP_F32_MOST, "queries, %u heads of %u", n_h, head);
    rows_compare(&y, most_of(k->gqa.dtype), "qkv, %u heads to %u of %u, norm "
                 "%d", n_h, n_kv, head, k->norm);

    unsigned long n_kernels = count_launches() - n_before;

    if (is_emulated() && n_kernels != k->n_kernels) {
        fail_msg("%u heads to %u of %u, norm %d: expected %lu kernels, got "
                 "%lu", n_h, n_kv, head, k->norm, k->n_kernels, n_kernels);
    }

    rows_free(&q);
    rows_free(&x);
    rows_free(&kv);
    rows_free(&angles);
    rows_free(&w_q);
    rows_free(&w_k);
    rows_free(&y);
    both_free(&keys.b);
}


static void
test_qkv(void **state)
{
    /* All kinds of norms and pairs, a warp with several heads; a step of a
     * prompt; too many heads for a norm in one, and such that are too wide. */
    static const struct qkv_case cases[] = {
        { { DTYPE_BF16, 6, 2, 48, { 70, 9, 130 }, { 1, 2, 3 } }, EACH, 0, 2 },
        { { DTYPE_BF16, 8, 2, 128, { 60, 66, 2 }, { 60, 5, 2 } }, EACH, 0, 2 },
        { { DTYPE_F32, 3, 1, 16, { 70, 66, 9 }, { 5, 5, 5 } }, EACH, 1, 2 },
        { { DTYPE_BF16, 4, 2, 64, { 70, 66, 9 }, { 5, 5, 5 } }, WHOLE, 0, 2 },
        { { DTYPE_BF16, 17, 17, 80, { 65, 0, 0 }, { 1, 0, 0 } }, WHOLE, 0, 2 },
        { { DTYPE_F32, 32, 1, 128, { 2, 0, 3 }, { 1, 0, 3 } }, WHOLE, 1, 2 },
        { { DTYPE_BF16, 8, 1, 80, { 65, 1, 64 }, { 2, 1, 2 } }, NONE, 1, 2 },
        { { DTYPE_F32, 4, 4, 128, { 65, 1, 64 }, { 2, 1, 2 } }, NONE, 0, 2 },
        { { DTYPE_BF16, 3, 3, 48, { 140, 140, 9 }, { 140, 130, 5 } }, EACH, 0,
          2 },
        { { DTYPE_BF16, 40, 40, 16, { 9, 0, 0 }, { 1, 0, 0 } }, WHOLE, 0, 4 },
        { { DTYPE_BF16, 2, 1, 144, { 9, 0, 66 }, { 1, 0, 3 } }, NONE, 0, 4 }
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        check_qkv(&cases[i]);
    }
}


struct prompt_case {
    uint32_t n_heads;
    uint32_t n_latent;
    uint32_t nope;
    uint32_t rope;
    uint32_t v;
    uint32_t n_ctx[3];
    uint32_t n_new[3];
};


/* The calls of a layer's attention, in a step of so many tokens that they may
 * be put together: heads, rope, mla, heads. */
static void
check_prompt(const struct prompt_case *k)
{
    uint32_t      n = k->n_latent + k->rope, row = backend_pad(n);
    uint32_t      qk = k->nope + k->rope, n_h = k->n_heads, none = 0;
    struct weight uk[2], uv[2];
    struct keys   keys;
    struct tokens t;

    keys_make(&keys, DTYPE_BF16, n, &k->n_ctx);
    tokens_last(&t, &keys, &k->n_ctx, &k->n_new);
    t.batch.repeats = 1;

    uint32_t    n_tok = t.batch.n_tok;
    struct rows q = rows_make(n_tok, n_h * qk, n_h * qk);
    struct rows angles = rows_make(n_tok, k->rope, k->rope);
    struct rows latent = rows_make(n_tok, n_h * row, n_h * row);
    struct rows out = rows_make(n_tok, n_h * row, n_h * row);
    struct rows y = rows_poisoned(n_tok, n_h * k->v, n_h * k->v + 1);

    memset(latent.host, 0, latent.b.n_bytes);   /* its padding */
    both_put(&latent.b, latent.host);
    weight_make(uk, DTYPE_BF16, n_h, k->n_latent, k->nope);
    weight_make(uv, DTYPE_BF16, n_h, k->v, k->n_latent);
    EACH(b) {
        struct heads to = { tensor_of(&latent, b), tensor_of(&q, b), row, qk,
                            &uk[b], n_tok };
        struct rope  rope = {
            tensor_from(to.y, k->n_latent), tensor_from(to.x, k->nope), row,
            qk, tensor_of(&angles, b), n_h, k->rope, 1
        };
        struct mla   mla = {
            tensor_of(&out, b), to.y, &keys.store[b], 1, n_h, k->n_latent,
            1 / sqrtf((float) n)
        };
        struct heads from = { tensor_of(&y, b), mla.y, k->v, row, &uv[b],
                              n_tok };

        OP(b, begin, &t.batch);
        OP(b, heads, &to);
        OP(b, rope, &rope);
        OP(b, mla, &mla);
        OP(b, heads, &from);
        OP(b, gather, tensor_of(&out, b), tensor_of(&q, b), &none, 0, 1);
    }
    rows_compare(&y, OP_BF16_MOST, "prompt, %u heads, %u: %u + %u, %u", n_h,
                 k->n_latent, k->nope, k->rope, k->v);
    rows_free(&q);
    rows_free(&angles);
    rows_free(&latent);
    rows_free(&out);
    rows_free(&y);
    weight_free(uk);
    weight_free(uv);
    both_free(&keys.b);
}


static void
test_prompt(void **state)
{
    /* Long and short runs; one of all sizes off their tiles; DeepSeek's. */
    static const struct prompt_case cases[] = {
        { 3, 48, 24, 16, 20, { 330, 70, 140 }, { 150, 3, 140 } },
        { 2, 80, 128, 64, 128, { 270, 129, 0 }, { 270, 1, 0 } },
        { 1, 35, 24, 16, 20, { 280, 0, 0 }, { 280, 0, 0 } }
    };
    static const struct prompt_case large = {
        16, 512, 128, 64, 128, { 900, 70, 300 }, { 300, 2, 90 }
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        check_prompt(&cases[i]);
    }

    if (!is_small()) {
        check_prompt(&large);
    }
}


/* What a layer of a step that is repeated does to keys and queries, in the
 * calls that are put together: norm, rope and kv_put of the latent, heads and
 * rope of the queries; and then attention, which reads what was put. */
static void
check_latent(const struct prompt_case *k)
{
    uint32_t      n = k->n_latent + k->rope, row = backend_pad(n);
    uint32_t      qk = k->nope + k->rope, n_h = k->n_heads, none = 0;
    struct weight uk[2];
    struct keys   keys;
    struct tokens t;

    keys_make(&keys, DTYPE_BF16, n, &k->n_ctx);
    tokens_last(&t, &keys, &k->n_ctx, &k->n_new);
    t.batch.repeats = ++n_repeats;

    uint32_t    n_tok = t.batch.n_tok;
    struct rows kv = rows_make(n_tok, n, n), norm = rows_make(1, n, n);
    struct rows q = rows_make(n_tok, n_h * qk, n_h * qk);
    struct rows angles = rows_make(n_tok, k->rope, k->rope);
    struct rows latent = rows_make(n_tok, n_h * row, n_h * row);
    struct rows y = rows_make(n_tok, n_h * row, n_h * row);

    memset(latent.host, 0, latent.b.n_bytes);   /* its padding */
    both_put(&latent.b, latent.host);
    weight_make(uk, DTYPE_BF16, n_h, k->n_latent, k->nope);
    EACH(b) {
        struct tensor x = tensor_of(&kv, b);
        struct tensor key = tensor_from(x, k->n_latent);
        struct rope   rope_k = { key, key, 0, 0, tensor_of(&angles, b), 1,
                                 k->rope, 1 };
        struct heads  to = { tensor_of(&latent, b), tensor_of(&q, b), row, qk,
                             &uk[b], n_tok };
        struct rope   rope_q = {
            tensor_from(to.y, k->n_latent), tensor_from(to.x, k->nope), row,
            qk, tensor_of(&angles, b), n_h, k->rope, 1
        };
        struct mla    mla = {
            tensor_of(&y, b), to.y, &keys.store[b], 1, n_h, k->n_latent,
            1 / sqrtf((float) n)
        };

        OP(b, begin, &t.batch);
        OP(b, rmsnorm, x, x, norm.b.at[b], 1e-6f, n_tok, k->n_latent);
        OP(b, rope, &rope_k);
        OP(b, kv_put, &keys.store[b], 1, x, n);
        OP(b, heads, &to);
        OP(b, rope, &rope_q);
        OP(b, mla, &mla);
        OP(b, gather, tensor_of(&y, b), tensor_of(&q, b), &none, 0, 1);
    }
    rows_compare(&latent, OP_BF16_MOST, "queries of %u tokens, %u heads, %u "
                 "to %u", n_tok, n_h, k->nope, k->n_latent);
    rows_compare(&y, OP_BF16_MOST, "latents of %u tokens, %u heads, %u",
                 n_tok, n_h, k->n_latent);
    rows_free(&kv);
    rows_free(&norm);
    rows_free(&q);
    rows_free(&angles);
    rows_free(&latent);
    rows_free(&y);
    weight_free(uk);
    both_free(&keys.b);
}


static void
test_latent(void **state)
{
    /* One token and few; of each kernel a last tile of tokens that is not full,
     * the last row tiles of a head, more columns than registers hold; what is
     * not in pieces of 16 bytes. */
    static const struct prompt_case cases[] = {
        { 3, 48, 24, 16, 0, { 70, 0, 0 }, { 1, 0, 0 } },
        { 2, 176, 120, 32, 0, { 66, 3, 0 }, { 2, 3, 0 } },
        { 5, 35, 20, 8, 0, { 70, 9, 1 }, { 5, 3, 1 } },
        { 2, 300, 204, 16, 0, { 65, 20, 7 }, { 9, 20, 2 } },
        { 3, 150, 128, 64, 0, { 64, 0, 40 }, { 8, 0, 25 } },
        { 1, 40, 140, 16, 0, { 130, 70, 0 }, { 71, 70, 0 } },
        { 2, 40, 23, 16, 0, { 30, 0, 0 }, { 30, 0, 0 } }
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        check_latent(&cases[i]);
    }
}


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mla),
        cmocka_unit_test(test_mla_splits),
        cmocka_unit_test(test_gqa),
        cmocka_unit_test(test_gqa_kernels),
        cmocka_unit_test(test_gqa_replays),
        cmocka_unit_test(test_qkv),
        cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_latent),
    };

    return pair_run(tests, BASE_COUNT(tests));
}
