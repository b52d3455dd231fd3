// Prints what llama.cpp's own parser makes of a command line, as JSON.
//   show_params server|cli ARGUMENT…
#include "arg.h"
#include "common.h"
#include "speculative.h"

#include <cstdio>
#include <cstring>

static void quoted(const std::string & value) {
    printf("\"");
    for (unsigned char c : value) {
        printf(c == '"' || c == '\\' ? "\\%c" : "%c", c);
    }
    printf("\"");
}

static void text(const char * name, const std::string & value) {
    printf("\"%s\": ", name);
    quoted(value);
    printf(", ");
}

static void number(const char * name, long long value) {
    printf("\"%s\": %lld, ", name, value);
}

int main(int argc, char ** argv) {
    const bool server = argc > 1 && strcmp(argv[1], "server") == 0;
    common_params params;
    if (!common_params_parse(argc - 1, argv + 1, params, server ? LLAMA_EXAMPLE_SERVER : LLAMA_EXAMPLE_CLI)) {
        return 1;
    }
    printf("{");
    text("model", params.model.path);
    number("n_gpu_layers", params.n_gpu_layers);
    number("split_mode", params.split_mode);
    printf("\"spec_types\": [");
    bool first = true;
    for (const auto type : params.speculative.types) {
        if (type != COMMON_SPECULATIVE_TYPE_NONE) {
            printf(first ? "" : ", ");
            quoted(common_speculative_type_to_str(type));
            first = false;
        }
    }
    printf("], ");
    number("spec_n_max", params.speculative.draft.n_max);
    text("draft_cache_type_k", ggml_type_name(params.speculative.draft.cache_type_k));
    text("draft_cache_type_v", ggml_type_name(params.speculative.draft.cache_type_v));
    printf("\"tensor_split\": [");
    for (int i = 0; i < 15; ++i) {
        printf("%g, ", params.tensor_split[i]);
    }
    printf("%g], ", params.tensor_split[15]);
    number("n_ctx", params.n_ctx);
    text("cache_type_k", ggml_type_name(params.cache_type_k));
    text("cache_type_v", ggml_type_name(params.cache_type_v));
    number("flash_attn", params.flash_attn_type);
    number("n_batch", params.n_batch);
    number("n_ubatch", params.n_ubatch);
    number("n_parallel", params.n_parallel);
    number("kv_unified", params.kv_unified);
    number("fit", params.fit_params);
    number("jinja", params.use_jinja);
    number("port", params.port);
    text("host", params.hostnames.front());
    printf("\"aliases\": [");
    const char * comma = "";
    for (const auto & alias : params.model_alias) {
        printf("%s", comma);
        quoted(alias);
        comma = ", ";
    }
    printf("], \"overrides\": {");
    comma = "";
    for (const auto & item : params.kv_overrides) {
        if (item.key[0] != 0) {
            printf("%s\"%s\": %lld", comma, item.key, (long long) item.val_i64);
            comma = ", ";
        }
    }
    printf("}}\n");
    return 0;
}
