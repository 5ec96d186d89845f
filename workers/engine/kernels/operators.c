/* The kernels as operators of ONNX Runtime, in the domain `modelpress`:
 *
 *     SignMatMul(x [..., n] float, weight [k, words] uint64, scale [k] float, bias [k] float) -> [..., k] float
 *     SignConv(x [N, C, H, W] float, weight [k, h, w, words] uint64, scale [k] float, bias [k] float) -> [N, k, H', W'] float
 *
 *     y = scale * product(sign(x), weight) + bias        the product in whole numbers; what pads an image is 1
 *
 * ONNX Runtime's packages have no headers. What is declared here is the part of its C interface that is used: a table of functions whose
 * first 102 are those of version 1 and never move, and the record of an operator as version 16 has it, which later versions extend.
 */

#include <stdint.h>
#include <stdlib.h>

#include "xnor.h"

typedef struct status status;    /* NULL is success */
typedef struct value value;
typedef struct shape_info shape_info;
typedef struct context context;
typedef struct kernel_info kernel_info;
typedef struct domain domain;
typedef struct session_options session_options;

typedef void (*slot)(void);
typedef struct {
    slot at[102];
} api_table;
typedef struct {
    const api_table *(*get)(uint32_t version);
    const char *(*version)(void);
} api_base;

enum { API_VERSION = 16, FLOAT = 1, UINT64 = 13, INVALID_ARGUMENT = 2, FAILED = 1 };
enum {
    CREATE_STATUS = 0,
    CREATE_DOMAIN = 26,
    ADD_OPERATOR = 27,
    ADD_DOMAIN = 28,
    DATA = 51,
    RANK = 61,
    DIMENSIONS = 62,
    SHAPE_INFO = 65,
    ATTRIBUTE_INT = 86,
    INPUT = 90,
    OUTPUT = 91,
    RELEASE_SHAPE_INFO = 99
};

#define CALL(api, index, ...) ((status * (*)(__VA_ARGS__))(api)->at[index])
#define TRY(call)                                \
    do {                                         \
        status *problem = (call);                \
        if (problem != NULL) return problem;     \
    } while (0)

static status *refuse(const api_table *api, int code, const char *message) {
    return CALL(api, CREATE_STATUS, int, const char *)(code, message);
}

#define MOST_AXES 8
enum { X, WEIGHT, SCALE, BIAS, INPUTS };

typedef struct {
    void *data;
    int64_t shape[MOST_AXES];
    size_t rank;
} tensor;

static status *read_shape(const api_table *api, const value *from, tensor *to) {
    shape_info *info = NULL;
    TRY(CALL(api, SHAPE_INFO, const value *, shape_info **)(from, &info));
    status *problem = CALL(api, RANK, const shape_info *, size_t *)(info, &to->rank);
    if (problem == NULL && to->rank > MOST_AXES)
        problem = refuse(api, INVALID_ARGUMENT, "products of signs have operands of at most 8 axes");
    if (problem == NULL)
        problem = CALL(api, DIMENSIONS, const shape_info *, int64_t *, size_t)(info, to->shape, to->rank);
    ((void (*)(shape_info *))api->at[RELEASE_SHAPE_INFO])(info);
    return problem;
}

static status *read_input(const api_table *api, context *c, size_t index, tensor *to) {
    const value *from = NULL;
    TRY(CALL(api, INPUT, const context *, size_t, const value **)(c, index, &from));
    TRY(read_shape(api, from, to));
    return CALL(api, DATA, const value *, void **)(from, &to->data);
}

static status *make_output(const api_table *api, context *c, const int64_t *shape, size_t rank, float **data) {
    value *made = NULL;
    TRY(CALL(api, OUTPUT, context *, size_t, const int64_t *, size_t, value **)(c, 0, shape, rank, &made));
    return CALL(api, DATA, value *, void **)(made, (void **)data);
}

/* What a node knows before it runs. */
typedef struct {
    const api_table *api;
    int64_t channels, stride[2], pads[4];    /* pads: top, left, bottom, right */
} kernel;

static status *read_int(const api_table *api, const kernel_info *info, const char *name, int64_t *to) {
    return CALL(api, ATTRIBUTE_INT, const kernel_info *, const char *, int64_t *)(info, name, to);
}

static status *create_matmul(const void *op, const api_table *api, const kernel_info *info, void **made) {
    (void)op;
    kernel *k = calloc(1, sizeof *k);
    if (k == NULL) return refuse(api, FAILED, "no memory for a product of signs");
    k->api = api;
    *made = k;
    return read_int(api, info, "channels", &k->channels);
}

static status *create_convolution(const void *op, const api_table *api, const kernel_info *info, void **made) {
    TRY(create_matmul(op, api, info, made));
    kernel *k = *made;
    TRY(read_int(api, info, "stride_height", k->stride));
    TRY(read_int(api, info, "stride_width", k->stride + 1));
    TRY(read_int(api, info, "pad_top", k->pads));
    TRY(read_int(api, info, "pad_left", k->pads + 1));
    TRY(read_int(api, info, "pad_bottom", k->pads + 2));
    TRY(read_int(api, info, "pad_right", k->pads + 3));
    return k->stride[0] < 1 || k->stride[1] < 1 ? refuse(api, INVALID_ARGUMENT, "strides are at least 1") : NULL;
}

/* The operands, where they fit together. `axes`: of a weight. */
static status *read_inputs(const kernel *k, context *c, size_t axes, tensor *in) {
    for (size_t i = 0; i < INPUTS; i++) TRY(read_input(k->api, c, i, in + i));
    const tensor *w = in + WEIGHT;
    int fit = w->rank == axes && k->channels > 0 && w->shape[axes - 1] == (k->channels + 63) / 64;
    for (size_t i = SCALE; i < INPUTS; i++) fit = fit && in[i].rank == 1 && in[i].shape[0] == w->shape[0];
    return fit ? NULL : refuse(k->api, INVALID_ARGUMENT, "weight, scale and bias of a product of signs don't fit together");
}

static status *run_matmul(void *state, context *c) {
    const kernel *k = state;
    tensor in[INPUTS];
    TRY(read_inputs(k, c, 2, in));
    tensor *x = in + X;
    if (x->rank < 1 || x->shape[x->rank - 1] != k->channels)
        return refuse(k->api, INVALID_ARGUMENT, "the last axis of x is as long as the rows of the weight");
    size_t rows = 1, n = (size_t)k->channels, words = (n + 63) / 64, filters = (size_t)in[WEIGHT].shape[0];
    for (size_t i = 0; i + 1 < x->rank; i++) rows *= (size_t)x->shape[i];
    x->shape[x->rank - 1] = (int64_t)filters;
    float *y = NULL;
    TRY(make_output(k->api, c, x->shape, x->rank, &y));
    uint64_t *packed = malloc(rows * words * sizeof *packed + 1);
    if (packed == NULL) return refuse(k->api, FAILED, "no memory for a product of signs");
    int way = xnor_best();
    xnor_pack(way, x->data, rows, n, words, packed);
    xnor_matmul(way, packed, in[WEIGHT].data, rows, filters, words, (int32_t)n, (int32_t *)y);
    xnor_scale((int32_t *)y, rows, filters, in[SCALE].data, in[BIAS].data);
    free(packed);
    return NULL;
}

static int64_t places(int64_t size, int64_t pad, int64_t filter, int64_t stride) {
    int64_t room = size + pad - filter;
    return room < 0 ? 0 : room / stride + 1;
}

static status *run_convolution(void *state, context *c) {
    const kernel *k = state;
    tensor in[INPUTS];
    TRY(read_inputs(k, c, 4, in));
    const int64_t *x = in[X].shape, *w = in[WEIGHT].shape;
    if (in[X].rank != 4 || x[1] != k->channels)
        return refuse(k->api, INVALID_ARGUMENT, "x is [N, C, H, W] with as many channels as the filters");
    int64_t out[4] = {x[0], w[0], places(x[2], k->pads[0] + k->pads[2], w[1], k->stride[0]),
                      places(x[3], k->pads[1] + k->pads[3], w[2], k->stride[1])};
    if (out[2] < 1 || out[3] < 1) return refuse(k->api, INVALID_ARGUMENT, "the filters don't fit into the padded image");
    float *y = NULL;
    TRY(make_output(k->api, c, out, 4, &y));
    size_t words = (size_t)w[3], pixels = (size_t)(x[2] * x[3]), at = (size_t)(out[2] * out[3]);
    size_t filter = (size_t)(w[1] * w[2]) * words;
    uint64_t *memory = malloc((pixels * words + filter + words) * sizeof *memory + at * (size_t)w[0] * sizeof(int32_t));
    if (memory == NULL) return refuse(k->api, FAILED, "no memory for a product of signs");
    uint64_t *scratch = memory + pixels * words, *ones = scratch + filter;
    int32_t *sums = (int32_t *)(ones + words);
    convolution asked = {(size_t)x[2],         (size_t)x[3],         words,
                         (size_t)w[1],         (size_t)w[2],         (size_t)k->stride[0],
                         (size_t)k->stride[1], (size_t)k->pads[0],   (size_t)k->pads[1],
                         (size_t)out[2],       (size_t)out[3],       (size_t)w[0],
                         (int32_t)k->channels};
    int way = xnor_best();
    xnor_ones((size_t)k->channels, ones);
    for (int64_t image = 0; image < x[0]; image++) {
        const float *from = (const float *)in[X].data + (size_t)image * pixels * (size_t)x[1];
        xnor_pack_channels(from, (size_t)x[1], pixels, words, memory);
        xnor_convolve(way, &asked, memory, 1, in[WEIGHT].data, ones, scratch, sums);
        xnor_scale_channels(sums, at, (size_t)w[0], in[SCALE].data, in[BIAS].data, y + (size_t)image * at * (size_t)w[0]);
    }
    free(memory);
    return NULL;
}

/* An operator as version 16 of the interface has it. */
typedef struct operator operator;
struct operator {
    uint32_t version;
    slot old_create;
    const char *(*name)(const operator *);
    const char *(*provider)(const operator *);
    int (*input_type)(const operator *, size_t);
    size_t (*inputs)(const operator *);
    int (*output_type)(const operator *, size_t);
    size_t (*outputs)(const operator *);
    slot old_compute;
    void (*destroy)(void *);
    int (*input_kind)(const operator *, size_t);
    int (*output_kind)(const operator *, size_t);
    int (*input_memory)(const operator *, size_t);
    int (*least_inputs)(const operator *);
    int (*same_inputs)(const operator *);
    int (*least_outputs)(const operator *);
    int (*same_outputs)(const operator *);
    status *(*create)(const void *, const api_table *, const kernel_info *, void **);
    status *(*compute)(void *, context *);
};

static const char *name_matmul(const operator *op) { return (void)op, "SignMatMul"; }
static const char *name_convolution(const operator *op) { return (void)op, "SignConv"; }
static const char *any_provider(const operator *op) { return (void)op, NULL; }
static int input_type(const operator *op, size_t index) { return (void)op, index == WEIGHT ? UINT64 : FLOAT; }
static int output_type(const operator *op, size_t index) { return (void)op, (void)index, FLOAT; }
static size_t inputs(const operator *op) { return (void)op, INPUTS; }
static size_t outputs(const operator *op) { return (void)op, 1; }
static int zero_of(const operator *op, size_t index) { return (void)op, (void)index, 0; }
static int one(const operator *op) { return (void)op, 1; }

#define OPERATOR(name, create, compute)                                                                              \
    {API_VERSION, NULL,    name,    any_provider, input_type, inputs, output_type, outputs, NULL,  free, zero_of, \
     zero_of,     zero_of, one,     one,          one,        one,    create,      compute}

static const operator matmul_operator = OPERATOR(name_matmul, create_matmul, run_matmul);
static const operator convolution_operator = OPERATOR(name_convolution, create_convolution, run_convolution);

/* What ONNX Runtime calls when a session registers the library. The domain stays, as sessions that use it do not say when they end. */
status *RegisterCustomOps(session_options *options, const api_base *base) {
    static domain *made = NULL;
    const api_table *api = base->get(API_VERSION);
    if (api == NULL) return refuse(base->get(1), FAILED, "ONNX Runtime is older than 1.16");
    if (made == NULL) {
        domain *fresh = NULL;
        TRY(CALL(api, CREATE_DOMAIN, const char *, domain **)("modelpress", &fresh));
        TRY(CALL(api, ADD_OPERATOR, domain *, const operator *)(fresh, &matmul_operator));
        TRY(CALL(api, ADD_OPERATOR, domain *, const operator *)(fresh, &convolution_operator));
        made = fresh;
    }
    return CALL(api, ADD_DOMAIN, session_options *, domain *)(options, made);
}
