/*
 * runtime.cc - the runtime's calls in the emulation: memory with guards around
 * it, streams whose kernels and copies are as late as they may be, or earlier
 * (emu_order), graphs that are lists.
 */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

#define PAGE_BYTES      4096
#define ALIGN           256             /* as cudaMalloc's */
#define SLACK_BYTE      0xa5            /* between an end and its guard */

struct emu_launched {
    dim3                  n_blocks;
    dim3                  n_threads;
    size_t                shared_bytes;
    bool                  overlaps;
    unsigned              n_cluster;
    std::function<void()> fn;
};

struct emu_graph {
    std::vector<emu_launched> nodes;
};

/* What was asked for is done when somebody waits for it: nobody has it before,
 * and a buffer that is filled again, or read, too early shows. */
struct emu_stream {
    emu_graph                        *capture;
    std::deque<std::function<void()>> late;
    unsigned long                     n_done;
};

struct emu_event {
    emu_stream   *stream;
    unsigned long n;            /* of the stream's calls are before it */
};

struct block {
    void  *pages;
    size_t n_mapped;
    size_t n_bytes;
};

typedef std::lock_guard<std::recursive_mutex> hold_lock;

static std::map<void *, block>       blocks;
static std::map<const void *, int>   shared_of;     /* what kernels may have */
static std::vector<emu_stream *>     streams;
static std::recursive_mutex          lock;


static void
run_one(emu_stream *s)
{
    s->late.front()();
    s->late.pop_front();
    s->n_done++;
}


/* What the other streams may do meanwhile: nothing, all of it, or some. */
static void
run_others(const emu_stream *s)
{
    for (emu_stream *other : streams) {
        while (other != s && !other->late.empty()
               && (emu_order_get() == EMU_BACKWARDS
                   || (emu_order_get() == EMU_SHUFFLED && emu_draw(2) == 0)))
        {
            run_one(other);
        }
    }
}

int emu_n_sm = 4;


static void
run_late(emu_stream *s, unsigned long until)
{
    hold_lock hold(lock);

    while (s != NULL && s->n_done < until && !s->late.empty()) {
        run_others(s);
        run_one(s);
    }
}


static void
run_all_late(emu_stream *s)
{
    run_late(s, ~0ul);
}


static void
run(const emu_launched &l)
{
    emu_run(l.n_blocks, l.n_threads, l.shared_bytes, l.overlaps, l.fn,
            l.n_cluster);
}


static cudaError_t
do_later(emu_stream *s, std::function<void()> fn)
{
    if (s == NULL) {
        fn();

    } else if (s->capture != NULL) {
        emu_fail("a copy within a captured graph is not emulated");

    } else {
        hold_lock hold(lock);

        s->late.push_back(std::move(fn));
    }

    return cudaSuccess;
}


/* Up to the guard behind it; what is left before that is checked by free. */
static void *
take(size_t n, bool is_pinned)
{
    size_t room = (n + ALIGN - 1) / ALIGN * ALIGN;
    size_t pages = (room + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;

    hold_lock hold(lock);
    char     *m = (char *) emu_pages_take(pages, is_pinned);

    if (m == NULL) {
        return NULL;
    }

    char *at = m + pages - room;

    /* NaN, so that what nobody wrote shows; large blocks are not for that. */
    if (n < (16u << 20)) {
        memset(at, 0xff, n);
    }

    memset(at + n, SLACK_BYTE, room - n);
    blocks[at] = { m, pages, n };

    return at;
}


static cudaError_t
give(void *p)
{
    if (p == NULL) {
        return cudaSuccess;
    }

    cudaDeviceSynchronize();

    hold_lock hold(lock);
    auto      it = blocks.find(p);

    if (it == blocks.end()) {
        return cudaErrorInvalidValue;
    }

    const unsigned char *end = (unsigned char *) p + it->second.n_bytes;

    for (size_t i = 0; i < (ALIGN - it->second.n_bytes % ALIGN) % ALIGN; i++) {
        if (end[i] != SLACK_BYTE) {
            emu_fail("byte %zu after a block of %zu was written", i,
                     it->second.n_bytes);
        }
    }

    emu_pages_give(it->second.pages, it->second.n_mapped);
    blocks.erase(it);

    return cudaSuccess;
}


cudaError_t
cudaMalloc(void **p, size_t n)
{
    *p = take(n, false);

    return *p != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}


cudaError_t
cudaFree(void *p)
{
    return give(p);
}


/* Kernels load and store there, too. */
cudaError_t
cudaMallocHost(void **p, size_t n)
{
    *p = take(n, true);

    return *p != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}


cudaError_t
cudaFreeHost(void *p)
{
    return give(p);
}


cudaError_t
cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind,
                cudaStream_t s)
{
    return do_later(s, [=] {
        memcpy(to, from, n);
        emu_stores(to, n, false);
    });
}


cudaError_t
cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s)
{
    return do_later(s, [=] {
        /* Fresh pages are zero already. */
        if (v != 0 || n < (16u << 20)) {
            memset(p, v, n);
        }

        emu_stores(p, n, false);
    });
}


cudaError_t
emu_allow_shared(const void *kernel, int n)
{
    hold_lock hold(lock);

    shared_of[kernel] = n;

    return cudaSuccess;
}


/* Blocks of a cluster, which is a row of them. */
static unsigned
cluster_of(const cudaLaunchConfig_t *c)
{
    unsigned n = 1;

    for (unsigned i = 0; i < c->numAttrs; i++) {
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) {
            auto &dim = c->attrs[i].val.clusterDim;

            n = dim.y == 1 && dim.z == 1 ? dim.x : 0;
        }
    }

    return n;
}


cudaError_t
emu_count_clusters(int *n, const cudaLaunchConfig_t *c)
{
    *n = emu_n_sm / (int) cluster_of(c);

    return cudaSuccess;
}


cudaError_t
emu_launch(const cudaLaunchConfig_t *c, const void *kernel,
           std::function<void()> fn)
{
    bool overlaps = false;

    if (c->dynamicSmemBytes > 48 * 1024
        && (size_t) shared_of[kernel] < c->dynamicSmemBytes)
    {
        emu_fail("a kernel was not allowed its %zu bytes of shared memory",
                 c->dynamicSmemBytes);
    }

    for (unsigned i = 0; i < c->numAttrs; i++) {
        overlaps |= c->attrs[i].id
                    == cudaLaunchAttributeProgrammaticStreamSerialization
                    && c->attrs[i].val.programmaticStreamSerializationAllowed;
    }

    if (c->stream != NULL && c->stream->capture != NULL) {
        c->stream->capture->nodes.push_back({
            c->gridDim, c->blockDim, c->dynamicSmemBytes, overlaps,
            cluster_of(c), fn });

    } else {
        emu_launched l = { c->gridDim, c->blockDim, c->dynamicSmemBytes,
                           overlaps, cluster_of(c), fn };

        return do_later(c->stream, [=] { run(l); });
    }

    return cudaSuccess;
}


cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    hold_lock hold(lock);

    *s = new emu_stream();
    streams.push_back(*s);

    return cudaSuccess;
}


cudaError_t
cudaStreamDestroy(cudaStream_t s)
{
    hold_lock hold(lock);

    run_all_late(s);
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;

    return cudaSuccess;
}


static cudaError_t
not_capturing(cudaStream_t s)
{
    if (s != NULL && s->capture != NULL) {
        emu_fail("waits for a stream that is being captured");
    }

    return cudaSuccess;
}


cudaError_t
cudaStreamSynchronize(cudaStream_t s)
{
    not_capturing(s);
    run_all_late(s);

    return cudaSuccess;
}


/* One more of what was launched is done. */
cudaError_t
cudaStreamQuery(cudaStream_t s)
{
    not_capturing(s);
    run_late(s, s->n_done + 1);

    return s->late.empty() ? cudaSuccess : cudaErrorNotReady;
}


cudaError_t
cudaDeviceSynchronize()
{
    hold_lock hold(lock);

    for (emu_stream *s : streams) {
        not_capturing(s);
        run_all_late(s);
    }

    return cudaSuccess;
}


cudaError_t
cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    not_capturing(s);
    s->capture = new emu_graph;

    return cudaSuccess;
}


cudaError_t
cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    *graph = s->capture;
    s->capture = NULL;

    return *graph != NULL ? cudaSuccess : cudaErrorInvalidValue;
}


cudaError_t
cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t graph,
                     unsigned long long)
{
    *e = new emu_graph(*graph);

    return cudaSuccess;
}


cudaError_t
cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    not_capturing(s);

    return do_later(s, [nodes = e->nodes] {
        for (const emu_launched &l : nodes) {
            run(l);
        }
    });
}


cudaError_t
cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;

    return cudaSuccess;
}


cudaError_t
cudaGraphExecDestroy(cudaGraphExec_t e)
{
    delete e;

    return cudaSuccess;
}


cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new emu_event();

    return cudaSuccess;
}


cudaError_t
cudaEventDestroy(cudaEvent_t e)
{
    delete e;

    return cudaSuccess;
}


cudaError_t
cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    e->stream = s;
    e->n = s == NULL ? 0 : s->n_done + s->late.size();

    return cudaSuccess;
}


cudaError_t
cudaEventSynchronize(cudaEvent_t e)
{
    run_late(e->stream, e->n);

    return cudaSuccess;
}


cudaError_t
cudaGetDeviceCount(int *n)
{
    *n = 1;

    return cudaSuccess;
}


cudaError_t
cudaSetDevice(int)
{
    return cudaSuccess;
}


cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "emulated");
    p->totalGlobalMem = (size_t) 4 << 30;
    p->multiProcessorCount = emu_n_sm;
    p->major = 9;
    p->sharedMemPerBlockOptin = 227 * 1024;
    p->l2CacheSize = 1 << 20;

    return cudaSuccess;
}


cudaError_t
cudaMemGetInfo(size_t *n_free, size_t *n_all)
{
    *n_free = *n_all = (size_t) 4 << 30;

    return cudaSuccess;
}


cudaError_t
cudaGetLastError()
{
    return cudaSuccess;
}


const char *
cudaGetErrorName(cudaError_t e)
{
    return e == cudaSuccess ? "cudaSuccess" : "cudaErrorEmulated";
}


const char *
cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess ? "no error" : "an error of the emulation";
}
