/*
 * attend.c - attention: heads of tokens, each over its own keys, cut into one
 * part a thread.
 */
#include "cpu/cpu.h"

#include <assert.h>

struct attend_run {
    struct cpu   *c;
    struct tensor y;
    struct tensor q;
    struct attend a;            /* but for the token and its first head */
    uint32_t      n_heads;
    uint32_t      group;        /* heads that read the same keys and values;
                                   the next such read `head` columns on */
    uint64_t      keys;         /* of all tokens */
};


/* Heads [h0, h1) of a token. */
static void
run_token(const struct attend_run *r, uint32_t tok, uint32_t h0, uint32_t h1)
{
    struct attend a = r->a;

    a.pos = r->c->batch->pos[tok];
    a.pages = r->c->batch->pages[tok];

    while (h0 < h1) {
        uint32_t group = h0 / r->group, end = (group + 1) * r->group;
        size_t   at = (size_t) h0 * a.head;

        end = end < h1 ? end : h1;
        a.q = r->q.data + r->q.stride * tok + at;
        a.y = r->y.data + r->y.stride * tok + at;
        a.key = r->a.key + group * a.head;
        a.value = r->a.value + group * a.head;
        r->c->k->attend(&a, end - h0);
        h0 = end;
    }
}


/* A thread has as many keys as the others, and heads that follow each other,
 * so that they share what they read. */
static void
run_attend(void *ctx, int i, int n)
{
    const struct attend_run *r = ctx;
    const struct batch      *batch = r->c->batch;
    uint64_t                 all = r->keys * r->n_heads, at = 0;
    uint64_t                 from = all * (uint32_t) i / (uint32_t) n;
    uint64_t                 to = all * ((uint32_t) i + 1) / (uint32_t) n;

    for (uint32_t t = 0; t < batch->n_tok && at < to; t++) {
        uint64_t keys = batch->pos[t] + 1;
        uint64_t h0 = from > at ? (from - at + keys - 1) / keys : 0;
        uint64_t h1 = (to - at + keys - 1) / keys;

        h1 = h1 < r->n_heads ? h1 : r->n_heads;
        run_token(r, t, (uint32_t) h0, (uint32_t) h1);
        at += keys * r->n_heads;
    }
}


static void
attend(struct attend_run *r)
{
    const struct batch *batch = r->c->batch;

    for (uint32_t t = 0; t < batch->n_tok; t++) {
        r->keys += batch->pos[t] + 1;
    }

    cpu_run(r->c, run_attend, r, 2 * r->keys * r->n_heads * r->a.head);
}


void
cpu_mla(struct backend *b, const struct mla *m)
{
    struct attend_run r = {
        .c = cpu_of(b), .y = m->y, .q = m->q,
        .a = { .kv = m->kv, .layer = m->layer, .head = m->kv->row,
               .n_value = m->n_latent, .scale = m->scale },
        .n_heads = m->n_heads, .group = m->n_heads
    };

    attend(&r);
}


void
cpu_gqa(struct backend *b, const struct gqa *g)
{
    struct attend_run r = {
        .c = cpu_of(b), .y = g->y, .q = g->q,
        .a = { .kv = g->kv, .layer = g->layer, .head = g->head,
               .n_value = g->head, .value = g->n_kv_heads * g->head,
               .scale = g->scale },
        .n_heads = g->n_heads, .group = g->n_heads / g->n_kv_heads
    };

    assert(g->n_heads % g->n_kv_heads == 0 && g->head % BACKEND_PAD == 0
           && g->kv->row == 2 * g->n_kv_heads * g->head);
    attend(&r);
}
