/*
 * safetensors.h - the tensors of a model directory, mapped read-only: either
 * model.safetensors, or the shards of model.safetensors.index.json.
 *
 * Files are hostile input (D13): lengths, offsets, shapes and dtypes of a file
 * are checked against one another and its size before a tensor is handed out,
 * so that whoever reads `n_bytes` at `data` is right.  Must not know what a
 * tensor is for.
 */
#ifndef MOE_SAFETENSORS_H
#define MOE_SAFETENSORS_H

#include "base.h"

#define SAFETENSORS_HEADER_MAX      (16u << 20)     /* bytes */
#define SAFETENSORS_TENSORS_MAX     65536           /* in one file */
#define SAFETENSORS_SHARDS_MAX      1024
#define SAFETENSORS_DIMS_MAX        8

enum safetensors_dtype {
    SAFETENSORS_BOOL, SAFETENSORS_U8, SAFETENSORS_I8, SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2, SAFETENSORS_F8_E8M0, SAFETENSORS_I16,
    SAFETENSORS_U16, SAFETENSORS_F16, SAFETENSORS_BF16, SAFETENSORS_I32,
    SAFETENSORS_U32, SAFETENSORS_F32, SAFETENSORS_I64, SAFETENSORS_U64,
    SAFETENSORS_F64
};

struct safetensors_tensor {
    const char             *name;   /* NUL-terminated */
    const uint8_t          *data;
    uint64_t                n_bytes;
    uint64_t                dims[SAFETENSORS_DIMS_MAX];
    uint32_t                n_dims;
    enum safetensors_dtype  dtype;
};

struct safetensors;

/* NULL: e says file, tensor, expected and got. */
struct safetensors *safetensors_open(const char *dir, struct err *e);
void safetensors_close(struct safetensors *s);

/* NULL: there is none.  Borrowed until the close. */
const struct safetensors_tensor *
safetensors_find(const struct safetensors *s, const char *name);

/* All of them, by name. */
size_t safetensors_n(const struct safetensors *s);
const struct safetensors_tensor *
safetensors_at(const struct safetensors *s, size_t i);

/* A number that changes when a file does: by sizes and times of change. */
uint64_t safetensors_id(const struct safetensors *s);

const char *safetensors_dtype_name(enum safetensors_dtype t);

/* Elements [at, at + n) as FP32; at + n is within the tensor.  0, or -1: its
 * dtype is no number of a weight (F16, BF16, F32, F8_E4M3, F8_E8M0, U8 read as
 * the exponent E8M0). */
int safetensors_read(const struct safetensors_tensor *t, uint64_t at,
                     size_t n, float *out);

#endif /* MOE_SAFETENSORS_H */
