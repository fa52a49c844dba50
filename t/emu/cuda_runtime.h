/*
 * cuda_runtime.h - of the emulation: as much of CUDA's language and runtime as
 * cuda/ uses, for a C++ compiler of the host.  Kernels run at once, copies when
 * they are waited for; a captured graph is the list of what was launched.
 */
#ifndef MOE_EMU_CUDA_RUNTIME_H
#define MOE_EMU_CUDA_RUNTIME_H

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emu.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__         inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n)            alignas(n)
#define __CUDA_ARCH__           900

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

static inline uint2
make_uint2(unsigned x, unsigned y)
{
    return { x, y };
}

static inline float2
make_float2(float x, float y)
{
    return { x, y };
}

static inline uint4
make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return { x, y, z, w };
}

static inline float4
make_float4(float x, float y, float z, float w)
{
    return { x, y, z, w };
}

static inline void
__syncthreads()
{
    emu_sync_block();
}

static inline void
__syncwarp()
{
    emu_sync_group(EMU_WARP, NULL, NULL);
}

static inline void
__threadfence()
{
}

EMU_UNSEEN static inline unsigned
atomicAdd(unsigned *p, unsigned n)
{
    unsigned was = *p;

    emu_adds(p);

    *p = was + n;

    return was;
}

static inline unsigned
__float_as_uint(float f)
{
    unsigned u;

    memcpy(&u, &f, sizeof(u));

    return u;
}

static inline float
__uint_as_float(unsigned u)
{
    float f;

    memcpy(&f, &u, sizeof(f));

    return f;
}

static inline unsigned
__umulhi(unsigned a, unsigned b)
{
    return (unsigned) ((uint64_t) a * b >> 32);
}

template <class T>
static inline T
min(T a, T b)
{
    return b < a ? b : a;
}

template <class T>
static inline T
max(T a, T b)
{
    return a < b ? b : a;
}


/* The runtime. */
enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorMemoryAllocation,
    cudaErrorNotReady
};

enum cudaMemcpyKind {
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};

enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

typedef struct emu_stream *cudaStream_t;
typedef struct emu_event  *cudaEvent_t;
typedef struct emu_graph  *cudaGraph_t;
typedef struct emu_graph  *cudaGraphExec_t;

struct cudaDeviceProp {
    char   name[256];
    size_t totalGlobalMem;
    int    multiProcessorCount;
    int    major, minor;
    size_t sharedMemPerBlockOptin;
    int    l2CacheSize;
};

enum cudaLaunchAttributeID {
    cudaLaunchAttributeProgrammaticStreamSerialization,
    cudaLaunchAttributeClusterDimension
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    union {
        int programmaticStreamSerializationAllowed;
        struct {
            unsigned x, y, z;
        } clusterDim;
    } val;
};

struct cudaLaunchConfig_t {
    dim3                 gridDim;
    dim3                 blockDim;
    size_t               dynamicSmemBytes;
    cudaStream_t         stream;
    cudaLaunchAttribute *attrs;
    unsigned             numAttrs;
};

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int i);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i);
cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_all);
cudaError_t cudaMalloc(void **p, size_t n);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t n);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n,
                            cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode m);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaGetLastError();
const char *cudaGetErrorName(cudaError_t e);
const char *cudaGetErrorString(cudaError_t e);

cudaError_t emu_launch(const cudaLaunchConfig_t *c, const void *kernel,
                       std::function<void()> fn);
cudaError_t emu_count_clusters(int *n, const cudaLaunchConfig_t *c);
cudaError_t emu_allow_shared(const void *kernel, int n);

template <class K>
static inline cudaError_t
cudaFuncSetAttribute(K *kernel, cudaFuncAttribute, int n)
{
    return emu_allow_shared((const void *) kernel, n);
}

template <class K>
static inline cudaError_t
cudaOccupancyMaxActiveClusters(int *n, K *, const cudaLaunchConfig_t *c)
{
    return emu_count_clusters(n, c);
}

template <class... P, class... A>
static inline cudaError_t
cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(P...),
                   A &&...a)
{
    std::tuple<std::remove_cv_t<P>...> args(std::forward<A>(a)...);

    return emu_launch(c, (const void *) kernel,
                      [kernel, args] { std::apply(kernel, args); });
}

#endif /* MOE_EMU_CUDA_RUNTIME_H */
