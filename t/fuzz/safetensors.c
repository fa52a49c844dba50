/*
 * safetensors.c - any bytes as model.safetensors or as its index: tensors that
 * can be read from end to end, or an error of one line.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/dir.h"
#include "safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char header[] =
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";


static void
use(const struct safetensors *s)
{
    float out[64];

    for (size_t i = 0; i < safetensors_n(s); i++) {
        const struct safetensors_tensor *t = safetensors_at(s, i);
        uint64_t                         n = 1, sum = 0;

        for (uint32_t k = 0; k < t->n_dims; k++) {
            n *= t->dims[k];
        }

        for (uint64_t k = 0; k < t->n_bytes; k++) {
            sum += t->data[k];
        }

        if (n > t->n_bytes || sum > 255 * t->n_bytes
            || safetensors_find(s, t->name) == NULL)
        {
            abort();
        }

        for (uint64_t k = 0; k < n; k += 64) {
            (void) safetensors_read(t, k, n - k < 64 ? n - k : 64, out);
        }
    }
}


/* data[0]: 0 the index of one shard "m.safetensors"; 1 a header, whose length
 * is right; else a whole file. */
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint8_t zeros[4];
    struct err           e = { .text = "" };

    if (n < 1) {
        return 0;
    }

    uint8_t  which = data[0] % 3;
    uint64_t n_head = which == 0 ? sizeof(header) - 1 : n - 1;

    data++;
    n--;
    dir_put("model.safetensors.index.json", which == 0 ? data : NULL, n, "", 0);
    dir_put("model.safetensors", which == 2 ? data : which == 1
                             ? (const uint8_t *) &n_head : NULL,
        which == 2 ? n : 8, which == 1 ? data : zeros, which == 1 ? n : 0);

    if (which == 0) {
        char shard[8 + sizeof(header) - 1];

        memcpy(shard, &n_head, 8);
        memcpy(shard + 8, header, n_head);
        dir_put("mm.safetensors", shard, sizeof(shard), zeros, 4);
    }

    struct safetensors *s = safetensors_open(dir_name(), &e);

    if (s != NULL) {
        use(s);

    } else if (e.text[0] == '\0' || strchr(e.text, '\n') != NULL) {
        abort();
    }

    safetensors_close(s);

    return 0;
}
