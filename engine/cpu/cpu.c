/*
 * cpu.c - the CPU backend: memory, packing, the choice of kernels by what the
 * machine has, and the ops, each cut into one part a thread.
 */
#include "cpu/cpu.h"

#include <assert.h>
#include <cpuid.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Fewer multiplications than this are done before another thread has woken. */
#define WORK_MIN        (256 * 1024)

/* Of Intel's manual and Linux's headers; older ones do not name them. */
#define CPUID_AMX_BF16          (1u << 22)
#define CPUID_AMX_TILE          (1u << 24)
#define CPUID_AMX_INT8          (1u << 25)
#define ARCH_REQ_XCOMP_PERM     0x1023
#define XFEATURE_TILE           18

#define PAGE            4096


void
cpu_run(struct cpu *c, pool_fn fn, void *ctx, uint64_t work)
{
    if (work < WORK_MIN) {
        fn(ctx, 0, 1);

    } else {
        pool_run(c->pool, fn, ctx);
    }
}


/* How pages of memory are spread over the nodes that have threads.  It is a
 * wish: a container may not be allowed to have it. */
static void
spread(const struct place *p, void *at, size_t n, int mode)
{
    unsigned long nodes[PLACE_CPUS_MAX / 64] = { 0 };
    uintptr_t     from = ((uintptr_t) at + PAGE - 1) / PAGE * PAGE;
    uintptr_t     to = ((uintptr_t) at + n) / PAGE * PAGE;

    for (int k = 0; k < p->n_nodes && mode != MPOL_DEFAULT; k++) {
        int node = p->machine.cpus[p->cpu[p->first[k]]].node;

        nodes[node / 64] |= 1ul << node % 64;
    }

    if (from < to) {
        syscall(SYS_mbind, from, to - from, mode, nodes, PLACE_CPUS_MAX, 0);
    }
}


static void *
op_alloc(struct backend *b, size_t n_bytes)
{
    const struct place *place = pool_place(cpu_of(b)->pool);
    void               *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        return NULL;
    }

    if (n_bytes >= (2u << 20)) {
        madvise(p, n_bytes, MADV_HUGEPAGE);
    }

    if (place->n_nodes > 1) {
        spread(place, p, n_bytes, MPOL_INTERLEAVE);     /* keys above all */
    }

    return p;
}


static void
op_free(struct backend *b, void *p, size_t n_bytes)
{
    (void) b;

    if (p != NULL) {
        munmap(p, n_bytes);
    }
}


/* The number behind `key` in a file; UINT64_MAX where there is none. */
static uint64_t
file_number(const char *path, const char *key)
{
    char  line[256];
    FILE *f = fopen(path, "re");

    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) {
            char    *p = line + strlen(key), *end;
            uint64_t v = strtoull(p, &end, 10);

            fclose(f);
            return end == p ? UINT64_MAX : v;
        }
    }

    if (f != NULL) {
        fclose(f);
    }

    return UINT64_MAX;
}


/* What the machine can give, or what the container may take. */
static uint64_t
op_room(struct backend *b)
{
    uint64_t kib = file_number("/proc/meminfo", "MemAvailable:");
    uint64_t room = kib > UINT64_MAX / 1024 ? UINT64_MAX : kib * 1024;
    uint64_t max = file_number("/sys/fs/cgroup/memory.max", "");
    uint64_t now = file_number("/sys/fs/cgroup/memory.current", "");

    (void) b;

    if (max != UINT64_MAX && now <= max && max - now < room) {
        room = max - now;
    }

    return room;
}


static void
op_put(struct backend *b, void *to, const void *from, size_t n)
{
    (void) b;
    memcpy(to, from, n);
}


static void
op_get(struct backend *b, void *to, const void *from, size_t n)
{
    (void) b;
    memcpy(to, from, n);
}


int
cpu_share(const struct cpu *c, uint32_t tiles, int i, int n, int k,
          struct share *s)
{
    const struct place *p = pool_place(c->pool);
    int                 alone = n != p->n;

    if (k >= (alone ? p->n_nodes : 1)) {
        return 0;
    }

    s->node = alone ? k : place_node(p, i);
    s->i = alone ? 0 : i - p->first[s->node];
    s->n = alone ? 1 : p->first[s->node + 1] - p->first[s->node];
    place_part(p, tiles, s->node, &s->tile0, &s->tile1);

    return 1;
}


const uint8_t *
cpu_tiles(const struct cpu *c, const struct weight *w, uint32_t matrix,
          int node)
{
    uint32_t from, to;

    place_part(pool_place(c->pool), n_tiles(w->n_out), node, &from, &to);

    return (const uint8_t *) w->data + tile_bytes(w->dtype, w->n_in)
           * ((size_t) w->n * from + (size_t) matrix * (to - from) - from);
}


static size_t
op_weight_bytes(const struct weight *w)
{
    return w->dtype == DTYPE_FP8
           ? 0 : n_tiles(w->n_out) * tile_bytes(w->dtype, w->n_in);
}


/* Up to 16 rows as tile `tile` of a matrix.  -1: as backend.h has it. */
static int
put_tile(uint8_t *tile, const struct weight *w, const float *rows,
         uint32_t n_rows)
{
    if (w->dtype == DTYPE_TIGHT) {
        return tight_put(tile, rows, n_rows, w->n_in);
    }

    for (uint32_t lane = 0; lane < n_rows; lane++) {
        const float *x = rows + (size_t) lane * w->n_in;

        if (dtype_is_quant(w->dtype)) {
            quant_put(tile, w->dtype, lane, x, w->n_in);

        } else if (w->dtype == DTYPE_F32) {
            float *to = (float *) (void *) tile + lane;

            for (size_t i_in = 0; i_in < w->n_in; i_in++) {
                to[i_in * TILE] = x[i_in];
            }

        } else {
            uint16_t *to = (uint16_t *) (void *) tile + lane * 2;

            for (size_t i_in = 0; i_in < w->n_in; i_in++) {
                to[i_in / 2 * TILE * 2 + i_in % 2] = bf16_from_f32(x[i_in]);
            }
        }
    }

    return 0;
}


static int
op_weight_put(struct backend *b, const struct weight *w, uint32_t i,
              uint32_t row, uint32_t n_rows, const float *rows)
{
    const struct place *p = pool_place(cpu_of(b)->pool);
    uint32_t            from = 0, to = 0;
    uint8_t            *m = NULL;

    for (uint32_t r = 0, node = 0; r < n_rows; r += TILE) {
        uint32_t tile = (row + r) / TILE;

        while (tile >= to) {
            place_part(p, n_tiles(w->n_out), (int) node, &from, &to);
            m = (uint8_t *) cpu_tiles(cpu_of(b), w, i, (int) node++);
        }

        if (put_tile(m + tile * tile_bytes(w->dtype, w->n_in), w,
                     rows + (size_t) r * w->n_in,
                     n_rows - r < TILE ? n_rows - r : TILE) != 0)
        {
            return -1;
        }
    }

    return 0;
}


struct weight_run {
    struct cpu          *c;
    const struct weight *w;
};


/* Each thread touches its part of its node's memory first. */
static void
run_touch(void *ctx, int i, int n)
{
    const struct weight_run *a = ctx;
    const struct weight     *w = a->w;
    size_t                   one = tile_bytes(w->dtype, w->n_in) * w->n;
    struct share             s;

    cpu_share(a->c, n_tiles(w->n_out), i, n, 0, &s);

    uint8_t *at = (uint8_t *) w->data + one * s.tile0;
    size_t   all = one * (s.tile1 - s.tile0);
    size_t   from = all * (size_t) s.i / (size_t) s.n;
    size_t   to = all * ((size_t) s.i + 1) / (size_t) s.n;

    for (; from < to; from += PAGE) {
        *(volatile uint8_t *) (at + from) = 0;
    }
}


static void
op_weight_place(struct backend *b, const struct weight *w)
{
    struct weight_run   a = { cpu_of(b), w };
    const struct place *p = pool_place(a.c->pool);

    if (p->n_nodes > 1) {
        spread(p, w->data, op_weight_bytes(w) * w->n, MPOL_DEFAULT);
        pool_run(a.c->pool, run_touch, &a);
    }
}


static void
op_copy(struct backend *b, void *to, const void *from, size_t n)
{
    (void) b;
    memcpy(to, from, n);
}


struct each_run {
    void   (*fn)(void *ctx, uint32_t i, int thread);
    void    *ctx;
    uint32_t n;
};


static void
run_each(void *ctx, int i, int n)
{
    struct each_run *r = ctx;

    for (uint32_t j = (uint32_t) i; j < r->n; j += (uint32_t) n) {
        r->fn(r->ctx, j, i);
    }
}


static void
op_each(struct backend *b, uint32_t n,
        void (*fn)(void *ctx, uint32_t i, int thread), void *ctx)
{
    struct each_run r = { fn, ctx, n };

    pool_run(cpu_of(b)->pool, run_each, &r);
}


static void
op_begin(struct backend *b, const struct batch *batch)
{
    cpu_of(b)->batch = batch;
}


static void
op_embed(struct backend *b, struct tensor y, const struct weight *w)
{
    const struct batch *batch = cpu_of(b)->batch;

    for (uint32_t t = 0; t < batch->n_tok; t++) {
        assert(batch->ids[t] < w->n_out);

        for (uint32_t i = 0; i < w->n_in; i++) {
            y.data[y.stride * t + i] = tile_get(w->data, w->dtype, w->n_in,
                                                batch->ids[t], i);
        }
    }
}


struct rows_run {
    struct cpu   *c;
    struct tensor y;
    struct tensor x;
    struct tensor x2;           /* silu_mul's up */
    const float  *w;
    float         eps;
    uint32_t      n_rows;
    uint32_t      n;
};


static void
run_rmsnorm(void *ctx, int i, int n)
{
    struct rows_run *a = ctx;
    uint32_t         from, to;

    pool_part(a->n_rows, i, n, &from, &to);

    for (uint32_t r = from; r < to; r++) {
        a->c->k->rmsnorm(a->y.data + a->y.stride * r,
                         a->x.data + a->x.stride * r, a->w, a->eps, a->n);
    }
}


static void
op_rmsnorm(struct backend *b, struct tensor y, struct tensor x, const float *w,
           float eps, uint32_t n_rows, uint32_t n)
{
    struct rows_run a = {
        .c = cpu_of(b), .y = y, .x = x, .w = w, .eps = eps, .n_rows = n_rows,
        .n = n
    };

    cpu_run(a.c, run_rmsnorm, &a, (uint64_t) n_rows * n);
}


static void
run_silu_mul(void *ctx, int i, int n)
{
    struct rows_run *a = ctx;
    uint32_t         from, to;

    pool_part(a->n_rows, i, n, &from, &to);

    for (uint32_t r = from; r < to; r++) {
        a->c->k->silu_mul(a->y.data + a->y.stride * r,
                          a->x.data + a->x.stride * r,
                          a->x2.data + a->x2.stride * r, a->n);
    }
}


static void
op_silu_mul(struct backend *b, struct tensor y, struct tensor gate,
            struct tensor up, uint32_t n_rows, uint32_t n)
{
    struct rows_run a = {
        .c = cpu_of(b), .y = y, .x = gate, .x2 = up, .n_rows = n_rows, .n = n
    };

    cpu_run(a.c, run_silu_mul, &a, (uint64_t) n_rows * n * 4);
}


struct linear_run {
    struct cpu          *c;
    struct linear        l;
    uint32_t             n_rows;
    const struct heads  *heads;         /* or NULL */
};


/* Tiles of all heads, one after the other, or of the one matrix. */
static void
run_linear(void *ctx, int i, int n)
{
    const struct linear_run *a = ctx;
    uint32_t                 from, to;

    pool_part(n_tiles(a->l.n_out), i, n, &from, &to);

    if (from < to) {
        a->c->k->linear(&a->l, from, to, 0, a->n_rows);
    }
}


static void
op_linear(struct backend *b, struct tensor y, struct tensor x,
          const struct weight *w, uint32_t n_rows, int add)
{
    struct linear_run a = {
        .c = cpu_of(b),
        .l = {
            .w = w->data, .dtype = w->dtype, .n_out = w->n_out,
            .n_in = w->n_in, .x = x.data, .x_stride = x.stride,
            .y = y.data, .y_stride = y.stride, .add = add
        },
        .n_rows = n_rows
    };

    if (n_rows != 0) {
        cpu_run(a.c, run_linear, &a, (uint64_t) n_rows * w->n_out * w->n_in);
    }
}


static void
heads_share(const struct linear_run *a, const struct share *s)
{
    const struct heads  *h = a->heads;
    uint32_t             tiles = s->tile1 - s->tile0, from, to;

    pool_part(tiles * h->w->n, s->i, s->n, &from, &to);

    while (from < to) {
        uint32_t      head = from / tiles, t0 = from % tiles;
        uint32_t      t1 = to - from < tiles - t0 ? t0 + to - from : tiles;
        struct linear l = a->l;

        l.w = cpu_tiles(a->c, h->w, head, s->node);
        l.x += h->x_head * head;
        l.y += h->y_head * head;
        a->c->k->linear(&l, s->tile0 + t0, s->tile0 + t1, 0, a->n_rows);
        from += t1 - t0;
    }
}


static void
run_heads(void *ctx, int i, int n)
{
    const struct linear_run   *a = ctx;
    const struct weight       *w = a->heads->w;
    struct share               s;

    for (int k = 0; cpu_share(a->c, n_tiles(w->n_out), i, n, k, &s); k++) {
        heads_share(a, &s);
    }
}


static void
op_heads(struct backend *b, const struct heads *h)
{
    const struct weight *w = h->w;
    struct linear_run    a = {
        .c = cpu_of(b),
        .l = {
            .w = w->data, .dtype = w->dtype, .n_out = w->n_out,
            .n_in = w->n_in, .x = h->x.data, .x_stride = h->x.stride,
            .y = h->y.data, .y_stride = h->y.stride
        },
        .n_rows = h->n_rows,
        .heads = h
    };

    cpu_run(a.c, run_heads, &a,
            (uint64_t) h->n_rows * w->n * w->n_out * w->n_in);
}


static void
op_angles(struct backend *b, struct tensor angles, const float *freqs,
          uint32_t n_pairs, float scale)
{
    const struct batch *batch = cpu_of(b)->batch;

    for (uint32_t t = 0; t < batch->n_tok; t++) {
        float *to = angles.data + angles.stride * t;

        for (uint32_t i = 0; i < n_pairs; i++) {
            double angle = (double) ((float) batch->pos[t] * freqs[i]);

            to[i] = (float) cos(angle) * scale;
            to[n_pairs + i] = (float) sin(angle) * scale;
        }
    }
}


static void
rope_slice(float *y, const float *x, const float *angles, uint32_t n,
           int interleaved)
{
    uint32_t half = n / 2;

    for (uint32_t i = 0; i < half; i++) {
        uint32_t i0 = interleaved ? 2 * i : i;
        uint32_t i1 = interleaved ? 2 * i + 1 : i + half;
        float    x0 = x[i0], x1 = x[i1];
        float    c = angles[i], s = angles[half + i];

        y[i0] = x0 * c - x1 * s;
        y[i1] = x1 * c + x0 * s;
    }
}


static void
op_rope(struct backend *b, const struct rope *a)
{
    const struct batch *batch = cpu_of(b)->batch;

    for (uint32_t t = 0; t < batch->n_tok; t++) {
        for (uint32_t h = 0; h < a->n_heads; h++) {
            rope_slice(a->y.data + a->y.stride * t + a->y_head * h,
                       a->x.data + a->x.stride * t + a->x_head * h,
                       a->angles.data + a->angles.stride * t, a->n,
                       a->interleaved);
        }
    }
}


static void
op_kv_put(struct backend *b, const struct kv_store *kv, uint32_t layer,
          struct tensor x, uint32_t n)
{
    const struct batch *batch = cpu_of(b)->batch;

    for (uint32_t t = 0; t < batch->n_tok; t++) {
        uint32_t     pos = batch->pos[t];
        uint32_t     page = batch->pages[t][pos / BACKEND_PAGE_TOK];
        void        *row = kv_row(kv, page, layer, pos % BACKEND_PAGE_TOK);
        const float *from = x.data + x.stride * t;

        assert(page < kv->n_pages && n <= kv->row);
        memset(row, 0, kv->row * dtype_bytes(kv->dtype));

        if (kv->dtype == DTYPE_F32) {
            memcpy(row, from, n * sizeof(float));
            continue;
        }

        for (uint32_t i = 0; i < n; i++) {
            ((uint16_t *) row)[i] = bf16_from_f32(from[i]);
        }
    }
}


static void
op_gather(struct backend *b, struct tensor y, struct tensor x,
          const uint32_t *rows, uint32_t n_rows, uint32_t n)
{
    (void) b;

    for (uint32_t i = 0; i < n_rows; i++) {
        memcpy(y.data + y.stride * i, x.data + x.stride * rows[i],
               n * sizeof(float));
    }
}


static float *
op_fetch(struct backend *b, struct tensor x, uint32_t n_rows, uint32_t n)
{
    (void) b;
    (void) n_rows;
    assert(x.stride == n);

    return x.data;
}


static void
op_close(struct backend *b)
{
    pool_free(cpu_of(b)->pool);
    free(b);
}


static const struct backend_ops ops = {
    op_close, op_alloc, op_free, op_room, op_put, op_get, op_copy,
    op_weight_bytes,
    op_weight_put, op_weight_place, op_each, op_begin, op_embed, op_rmsnorm,
    op_linear, op_heads, op_angles, op_rope, op_kv_put, cpu_mla, cpu_gqa,
    cpu_route, cpu_moe, op_silu_mul, op_gather, op_fetch, NULL,
    NULL
};


/* clang 14, which builds the fuzzers, has no name for F16C. */
static int
has_avx2(void)
{
    unsigned a, b, c, d;

    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
           && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}


static int
has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f")
           && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512vl")
           && __builtin_cpu_supports("avx512dq");
}


static int
has_avx512vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}


static int
has_avx512bf16(void)
{
    return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}


/* The system must have it, and let a process have its registers. */
static int
has_amx(void)
{
    unsigned a, b, c, d;

    return has_avx512bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d)
           && (d & CPUID_AMX_TILE) != 0 && (d & CPUID_AMX_BF16) != 0
           && (d & CPUID_AMX_INT8) != 0
           && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE) == 0;
}


static int
always(void)
{
    return 1;
}


/* In the two cycles of a VDPBF16PS Intel's cores do four FMA: twice the
 * products, of numbers that are not rounded first. */
static int
bf16_pays(void)
{
    return !__builtin_cpu_is("intel");
}


/* Best first, where it pays. */
static const struct {
    const struct kernels *kernels;
    int                 (*runs_here)(void);
    int                 (*pays)(void);
} choices[] = {
    { &kernels_amx, has_amx, always },
    { &kernels_avx512bf16, has_avx512bf16, bf16_pays },
    { &kernels_avx512vnni, has_avx512vnni, always },
    { &kernels_avx512, has_avx512, always },
    { &kernels_avx2, has_avx2, always },
    { &kernels_ref, always, always }
};


static const struct kernels *
kernels_choose(const char *name, struct err *e)
{
    for (size_t i = 0; i < BASE_COUNT(choices); i++) {
        int named = strncmp(name, "cpu:", 4) == 0
                    && strcmp(name + 4, choices[i].kernels->name) == 0;

        if (!named && (strcmp(name, "cpu") != 0 || !choices[i].pays())) {
            continue;
        }

        if (choices[i].runs_here()) {
            return choices[i].kernels;
        }

        if (named) {
            err_set(e, "backend \"%s\": this machine's CPU does not have it",
                    name);
            return NULL;
        }
    }

    err_set(e, "backend \"%s\": expected cpu, cpu:amx, cpu:avx512bf16, "
            "cpu:avx512vnni, cpu:avx512, cpu:avx2 or cpu:ref", name);
    return NULL;
}


/* A number for where threads split weights over nodes; 0: there is one. */
static uint64_t
layout(const struct place *p)
{
    uint64_t number = p->n_nodes > 1;

    for (int k = 1; k < p->n_nodes; k++) {
        number = number * 4099 + (uint64_t) p->first[k] * 1031
                 + (uint64_t) p->n;
    }

    return number;
}


/* "avx512bf16, 64 threads, pinned, 2 nodes" */
static void
say_kernels(struct cpu *c)
{
    const struct place *p = pool_place(c->pool);
    char                nodes[24] = "";

    if (p->n_nodes > 1) {
        snprintf(nodes, sizeof(nodes), ", %d nodes", p->n_nodes);
    }

    snprintf(c->b.kernels, sizeof(c->b.kernels), "%s, %d thread%s%s%s",
             c->k->name, p->n, p->n == 1 ? "" : "s",
             p->pinned ? ", pinned" : "", nodes);
}


struct backend *
cpu_open(const char *name, int n_threads, int pin, struct err *e)
{
    const struct kernels *k = kernels_choose(name, e);

    if (k == NULL) {
        return NULL;
    }

    struct cpu *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        err_set(e, "no memory for the backend");
        return NULL;
    }

    c->k = k;
    c->b.ops = &ops;
    c->b.name = "cpu";
    c->b.host_memory = 1;
    c->b.tight = k->tight;
    c->pool = pool_create(n_threads, pin, e);

    if (c->pool == NULL) {
        free(c);
        return NULL;
    }

    c->b.n_threads = pool_place(c->pool)->n;
    c->b.layout = layout(pool_place(c->pool));
    say_kernels(c);

    return &c->b;
}
