/*
 * moe.c - the routed experts: rows sorted by expert, so that the weights of an
 * expert are read once for all its rows, then three passes: gate and up with
 * their activation, down, and each row's weighted sum in its own order (D6).
 */
#include "cpu/cpu.h"

struct moe_run {
    struct cpu       *c;
    const struct moe *a;
    uint32_t         *rows;     /* (n_slots) row of x, sorted by expert */
    uint32_t         *place;    /* (n_slots) where (row, k) went */
    uint32_t         *start;    /* (n_experts + 1) first slot of an expert */
    uint32_t         *active;   /* (n_active) experts with rows */
    uint32_t          n_active;
};


/* A counting sort of the slots (row, k) by expert; rows stay in order. */
static void
sort_slots(struct moe_run *m)
{
    const struct moe *a = m->a;
    uint32_t          n_experts = a->gate->n;
    uint32_t          n_slots = a->n_rows * a->n_active;

    memset(m->start, 0, (n_experts + 1) * sizeof(uint32_t));

    for (uint32_t s = 0; s < n_slots; s++) {
        m->start[a->ids[s] + 1]++;
    }

    for (uint32_t e = 0; e < n_experts; e++) {
        m->start[e + 1] += m->start[e];
        m->active[e] = m->start[e];     /* for now: where its next row goes */
    }

    for (uint32_t s = 0; s < n_slots; s++) {
        uint32_t at = m->active[a->ids[s]]++;

        m->rows[at] = s / a->n_active;
        m->place[s] = at;
    }

    m->n_active = 0;

    for (uint32_t e = 0; e < n_experts; e++) {
        if (m->start[e + 1] > m->start[e]) {
            m->active[m->n_active++] = e;
        }
    }
}


static uint32_t
rows_of(const struct moe_run *m, uint32_t e)
{
    return m->start[e + 1] - m->start[e];
}


/* What a tile of an expert costs: reading it, or multiplying it. */
static uint64_t
tile_cost(const struct moe_run *m, uint32_t e)
{
    uint32_t n = rows_of(m, e);

    return n < 4 ? 4 : n;
}


/* Tiles [tile0, tile1) of expert e; the node is the thread's. */
typedef void (*part_fn)(const struct moe_run *m, uint32_t e, int node,
                        uint32_t tile0, uint32_t tile1);


/* Calls fn for a share's tiles of each expert: an equal part of the cost.  A
 * tile belongs to the thread in whose part its cost begins. */
static void
each_of_share(struct moe_run *m, const struct share *s, part_fn fn)
{
    uint64_t all = 0, at = 0;
    uint32_t tiles = s->tile1 - s->tile0;

    for (uint32_t j = 0; j < m->n_active; j++) {
        all += tile_cost(m, m->active[j]) * tiles;
    }

    uint64_t from = all * (uint32_t) s->i / (uint32_t) s->n;
    uint64_t to = all * ((uint32_t) s->i + 1) / (uint32_t) s->n;

    for (uint32_t j = 0; j < m->n_active && at < to; j++) {
        uint32_t e = m->active[j];
        uint64_t cost = tile_cost(m, e);
        uint64_t t0 = from > at ? (from - at + cost - 1) / cost : 0;
        uint64_t t1 = (to - at + cost - 1) / cost;

        t1 = t1 < tiles ? t1 : tiles;

        if (t0 < t1) {
            fn(m, e, s->node, s->tile0 + (uint32_t) t0,
               s->tile0 + (uint32_t) t1);
        }

        at += cost * tiles;
    }
}


static void
each_part(struct moe_run *m, uint32_t tiles, int i, int n, part_fn fn)
{
    struct share s;

    for (int k = 0; cpu_share(m->c, tiles, i, n, k, &s); k++) {
        each_of_share(m, &s, fn);
    }
}


/* The rows of expert e through its matrix of w. */
static struct linear
of_expert(const struct moe_run *m, const struct weight *w, uint32_t e,
          int node)
{
    return (struct linear) {
        .w = cpu_tiles(m->c, w, e, node),
        .dtype = w->dtype,
        .n_out = w->n_out,
        .n_in = w->n_in,
    };
}


static void
gate_up(const struct moe_run *m, uint32_t e, int node, uint32_t tile0,
        uint32_t tile1)
{
    const struct moe *a = m->a;
    uint32_t          at = m->start[e], n = rows_of(m, e);
    struct linear     gate = of_expert(m, a->gate, e, node);
    struct linear     up = of_expert(m, a->up, e, node);

    gate.x = up.x = a->x.data;
    gate.x_stride = up.x_stride = a->x.stride;
    gate.x_rows = up.x_rows = m->rows + at;
    gate.y = a->tmp_gate.data + a->tmp_gate.stride * at;
    gate.y_stride = a->tmp_gate.stride;
    up.y = a->tmp_up.data + a->tmp_up.stride * at;
    up.y_stride = a->tmp_up.stride;

    m->c->k->linear(&gate, tile0, tile1, 0, n);
    m->c->k->linear(&up, tile0, tile1, 0, n);

    uint32_t col = tile0 * TILE;
    uint32_t end = tile1 * TILE < a->gate->n_out ? tile1 * TILE
                                                 : a->gate->n_out;

    for (uint32_t r = 0; r < n; r++) {
        float *g = gate.y + gate.y_stride * r + col;

        m->c->k->silu_mul(g, g, up.y + up.y_stride * r + col, end - col);
    }
}


static void
down(const struct moe_run *m, uint32_t e, int node, uint32_t tile0,
     uint32_t tile1)
{
    const struct moe *a = m->a;
    uint32_t          at = m->start[e];
    struct linear     l = of_expert(m, a->down, e, node);

    l.x = a->tmp_gate.data + a->tmp_gate.stride * at;
    l.x_stride = a->tmp_gate.stride;
    l.y = a->tmp_down.data + a->tmp_down.stride * at;
    l.y_stride = a->tmp_down.stride;

    m->c->k->linear(&l, tile0, tile1, 0, rows_of(m, e));
}


static void
run_gate_up(void *ctx, int i, int n)
{
    struct moe_run *m = ctx;

    each_part(m, n_tiles(m->a->gate->n_out), i, n, gate_up);
}


static void
run_down(void *ctx, int i, int n)
{
    struct moe_run *m = ctx;

    each_part(m, n_tiles(m->a->down->n_out), i, n, down);
}


static void
run_sum(void *ctx, int i, int n)
{
    struct moe_run   *m = ctx;
    const struct moe *a = m->a;
    uint32_t          from, to, dim = a->down->n_out;

    pool_part(a->n_rows, i, n, &from, &to);

    for (uint32_t r = from; r < to; r++) {
        float *y = a->y.data + a->y.stride * r;

        for (uint32_t k = 0; k < a->n_active; k++) {
            uint32_t     s = r * a->n_active + k;
            const float *d = a->tmp_down.data
                             + a->tmp_down.stride * m->place[s];
            float        weight = a->weights[s];

            for (uint32_t j = 0; j < dim; j++) {
                y[j] += weight * d[j];
            }
        }
    }
}


void
cpu_moe(struct backend *b, const struct moe *a)
{
    uint32_t       n_slots = a->n_rows * a->n_active;
    struct moe_run m = {
        .c = cpu_of(b),
        .a = a,
        .rows = a->tmp_order,
        .place = a->tmp_order + n_slots,
        .start = a->tmp_order + 2 * (size_t) n_slots,
        .active = a->tmp_order + 2 * (size_t) n_slots + a->gate->n + 1,
    };

    sort_slots(&m);

    uint64_t work = (uint64_t) n_slots * a->gate->n_out * a->gate->n_in;

    cpu_run(m.c, run_gate_up, &m, 2 * work);
    cpu_run(m.c, run_down, &m, work);
    cpu_run(m.c, run_sum, &m, (uint64_t) n_slots * a->down->n_out);
}
