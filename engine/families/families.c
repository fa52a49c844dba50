/*
 * families.c - model_type to family; what is not supported is refused by name
 * with the reason, rather than run wrongly.
 */
#include "model/family.h"

#include <string.h>

static const struct {
    const char          *model_type;
    const struct family *family;
} families[] = {
    { "deepseek_v2", &family_deepseek_v2 },
    { "deepseek_v3", &family_deepseek_v3 },
    { "kimi_k2", &family_deepseek_v3 },
    { "qwen3_moe", &family_qwen3_moe },
    { "olmoe", &family_olmoe },
    { "mixtral", &family_mixtral }
};

static const struct {
    const char *model_type;
    const char *why;
} refused[] = {
    { "deepseek_v32", "needs DeepSeek's sparse attention indexer" },
    { "deepseek_v4", "needs shared-KV attention and hyper-connections" },
    { "deepseek_v41", "is an encoder-decoder with n-gram tables" },
    { "glm_moe_dsa", "needs DeepSeek's sparse attention indexer" },
    { "glm4_moe", "needs partially rotated attention with biases" },
    { "glm4_moe_lite", "is of a family that is not written yet" },
    { "gpt_oss", "needs attention sinks and MXFP4 experts" },
    { "kimi_k25", "is a vision model; its text core is kimi_k2" },
    { "kimi_k3", "needs Kimi's linear attention" },
    { "kimi_linear", "needs Kimi's linear attention" },
    { "qwen2", "has no experts" },
    { "qwen3", "has no experts" },
    { "qwen3_next", "needs gated-delta linear attention" },
    { "qwen3_5_moe", "needs gated-delta linear attention" }
};


const struct family *
family_find(const char *model_type, struct err *e)
{
    for (size_t i = 0; i < BASE_COUNT(families); i++) {
        if (strcmp(model_type, families[i].model_type) == 0) {
            return families[i].family;
        }
    }

    for (size_t i = 0; i < BASE_COUNT(refused); i++) {
        if (strcmp(model_type, refused[i].model_type) == 0) {
            err_set(e, "model_type \"%s\" is not supported: it %s",
                    model_type, refused[i].why);
            return NULL;
        }
    }

    err_set(e, "model_type \"%.64s\" is not supported: expected deepseek_v2, "
            "deepseek_v3, kimi_k2, qwen3_moe, olmoe or mixtral", model_type);

    return NULL;
}
