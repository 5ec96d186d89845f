/* Products of signs; xnor.c says what each function does. */

#ifndef XNOR_H
#define XNOR_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    size_t height, width, words;    /* of an image: packed channels of a pixel lie together */
    size_t kernel_height, kernel_width;
    size_t stride_height, stride_width;
    size_t pad_top, pad_left;
    size_t out_height, out_width, filters;
    int32_t channels;
} convolution;

int xnor_best(void);
void xnor_ones(size_t n, uint64_t *out);
void xnor_pack(int way, const float *x, size_t rows, size_t n, size_t words, uint64_t *out);
void xnor_pack_channels(const float *x, size_t channels, size_t pixels, size_t words, uint64_t *out);
void xnor_matmul(int way, const uint64_t *a, const uint64_t *b, size_t m, size_t k, size_t words, int32_t n, int32_t *out);
void xnor_convolve(int way, const convolution *c, const uint64_t *images, size_t count, const uint64_t *filters,
                   const uint64_t *ones, uint64_t *scratch, int32_t *out);
void xnor_scale(int32_t *sums, size_t rows, size_t filters, const float *scale, const float *bias);
void xnor_scale_channels(const int32_t *sums, size_t pixels, size_t filters, const float *scale, const float *bias,
                         float *out);

#endif
