/* The kernels over odd sizes, in buffers of exactly the stated bytes, for the sanitizers: `make sanitize`.
 * Every instruction set that the processor has is also held against the portable one. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/cpu/bcq.h"

static uint32_t state = 1;

static uint32_t draw(void) { /* xorshift32 */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static void *filled(size_t bytes) {
    uint8_t *memory = NULL;
    if (posix_memalign((void **)&memory, 64, bytes))
        abort();
    for (size_t i = 0; i < bytes; i++)
        memory[i] = (uint8_t)draw();
    return memory;
}

/* `count` numbers of magnitude 1/4..2, as float32 or, where half, as float16. */
static void *numbers(int64_t count, int half) {
    uint8_t *memory = filled((size_t)count * (half ? 2 : 4));
    for (int64_t i = 0; i < count; i++) {
        float value = ((float)(draw() % 1024) / 1024.0f + 1.0f) * (draw() % 2 ? 1.0f : -0.25f);
        uint16_t bits = (uint16_t)(0x3400 + draw() % 0xc00);
        if (half)
            ((uint16_t *)memory)[i] = bits;
        else
            ((float *)memory)[i] = value;
    }
    return memory;
}

static float get(const void *from, int64_t i, int type) {
    union {
        uint32_t bits;
        float value;
    } wide = {.bits = type == BCQ_BF16 ? (uint32_t)((const uint16_t *)from)[i] << 16 : 0};
    return type == BCQ_BF16 ? wide.value : ((const float *)from)[i];
}

static void compare(const char *what, const void *found, const void *expected, int64_t count, int type, double part) {
    double error = 0, size = 1e-30;
    for (int64_t i = 0; i < count; i++) {
        double a = get(found, i, type), b = get(expected, i, type);
        error += (a - b) * (a - b);
        size += b * b;
    }
    if (!(sqrt(error / size) <= part)) {
        printf("%s differs from the portable one by %g\n", what, sqrt(error / size));
        exit(1);
    }
}

typedef struct { /* one weight as each instruction set reads it */
    bcq_weight weights[BCQ_ISA_COUNT];
    void *derived[BCQ_ISA_COUNT];
} layouts;

static void *call(const layouts *l, int isa, const void *x, int type, int64_t batch, const float *bias, int mode,
                  int threads) {
    const bcq_weight *w = l->weights + isa;
    void *y = filled((size_t)(batch * w->rows) * (type == BCQ_BF16 ? 2 : 4));
    if (bcq_product(w, l->derived[isa], x, type, batch, bias, y, mode, threads) != BCQ_OK)
        abort();
    return y;
}

static void products(const layouts *l, int type) {
    int64_t rows = l->weights->rows, columns = l->weights->columns;
    float *bias = numbers(rows, 0);
    for (int64_t batch = 1; batch <= BCQ_BATCH + 3; batch += batch == 1 ? 2 : 8) { /* 1, 3, 11 */
        void *x = numbers(batch * columns, 0);
        for (int64_t i = 0; i < (type == BCQ_BF16 ? batch * columns : 0); i++)
            ((uint16_t *)x)[i] = (uint16_t)(0x3f80 | draw() % 0x80 | draw() % 2 << 15);
        for (int mode = BCQ_EXACT; mode <= BCQ_FAST; mode++) {
            void *expected = call(l, BCQ_PORTABLE, x, type, batch, bias, mode, 1);
            for (int isa = BCQ_AVX2; isa <= bcq_best_isa(); isa++) {
                void *y = call(l, isa, x, type, batch, batch % 2 ? bias : NULL, mode, 3);
                void *same = batch % 2 ? expected : call(l, BCQ_PORTABLE, x, type, batch, NULL, mode, 2);
                compare("a product", y, same, batch * rows, type, type == BCQ_BF16 ? 1e-2 : mode ? 1e-2 : 1e-5);
                if (same != expected)
                    free(same);
                free(y);
            }
            free(expected);
        }
        free(x);
    }
    free(bias);
}

static void dequantized(const layouts *l, int type) {
    const bcq_weight *w = l->weights;
    int64_t first = w->rows > 32 ? 32 : 0, count = (w->rows - first) * w->columns;
    size_t bytes = (size_t)count * (type == BCQ_BF16 ? 2 : 4);
    void *expected = filled(bytes);
    bcq_dequantize(w, l->derived[BCQ_PORTABLE], first, w->rows, expected, type, 1);
    for (int isa = BCQ_AVX2; isa <= bcq_best_isa(); isa++) {
        void *out = filled(bytes);
        bcq_dequantize(l->weights + isa, l->derived[isa], first, w->rows, out, type, 2);
        compare("a dequantized weight", out, expected, count, type, 0);
        free(out);
    }
    free(expected);
}

static void one_weight(bcq_weight w) {
    int64_t groups = w.columns / w.group, planes = w.uniform ? 1 : w.bits;
    void *codes = filled((size_t)(w.rows * w.columns / 8 * w.bits));
    void *scale = numbers(w.rows * groups * planes, w.scale_type == BCQ_F16);
    void *shift = w.shift_type == BCQ_NONE ? NULL : numbers(w.rows * groups, w.shift_type == BCQ_F16);
    layouts l;
    for (int isa = BCQ_PORTABLE; isa <= bcq_best_isa(); isa++) {
        w.isa = isa;
        l.weights[isa] = w;
        l.derived[isa] = filled((size_t)bcq_size(&w));
        if (bcq_pack(&w, codes, scale, shift, l.derived[isa]) != BCQ_OK)
            abort();
    }
    free(codes), free(scale), free(shift); /* the layouts hold all */
    for (int type = BCQ_F32; type <= BCQ_BF16; type++) {
        products(&l, type);
        dequantized(&l, type);
    }
    for (int isa = BCQ_PORTABLE; isa <= bcq_best_isa(); isa++)
        free(l.derived[isa]);
}

static void refusals(void) {
    bcq_weight w = {8, 64, 32, 3, 0, BCQ_F16, BCQ_NONE, BCQ_PORTABLE}, wrong[] = {w, w, w, w, w, w, w, w};
    char memory[64];
    wrong[0].rows = 0, wrong[1].columns = 48, wrong[2].group = 16, wrong[3].bits = 9;
    wrong[4].bits = 0, wrong[5].scale_type = BCQ_BF16, wrong[6].shift_type = 7, wrong[7].isa = BCQ_ISA_COUNT;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (bcq_size(&wrong[i]) != -1 || bcq_pack(&wrong[i], memory, memory, memory, memory) != BCQ_BAD_ARGUMENT)
            abort();
    if (bcq_product(&w, memory, memory, BCQ_F32, -1, NULL, memory, BCQ_EXACT, 1) != BCQ_BAD_ARGUMENT ||
        bcq_product(&w, memory, memory, BCQ_F16, 1, NULL, memory, BCQ_EXACT, 1) != BCQ_BAD_ARGUMENT ||
        bcq_product(&wrong[7], memory, memory, BCQ_F32, 1, NULL, memory, BCQ_EXACT, 1) != BCQ_NO_ISA)
        abort();
}

int main(void) {
    static const int64_t shapes[][3] = {{1, 32, 32},   {31, 96, 32},  {33, 192, 96}, {65, 320, 160},
                                        {32, 320, 64}, {5, 768, 384}, {9, 544, 544}, {33, 384, 128}};
    int weights = 0;
    refusals();
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int bits = 1; bits <= 8; bits++, weights++) {
            int uniform = (bits + (int)s) % 2, shift = (bits + (int)s / 2) % 3;
            bcq_weight w = {
                shapes[s][0], shapes[s][1], shapes[s][2], bits, uniform, bits / 2 % 2 ? BCQ_F32 : BCQ_F16, 0, 0};
            w.shift_type = shift == 0 ? BCQ_NONE : shift == 1 ? BCQ_F16 : BCQ_F32;
            one_weight(w);
        }
    for (int isa = 0; isa <= bcq_best_isa(); isa++) {
        void *memory = filled(4099);
        if (bcq_read(memory, 4099, isa, 2) != bcq_read(memory, 4099, 0, 2))
            abort();
        free(memory);
    }
    printf("%d weights, %d instruction sets\n", weights, bcq_best_isa() + 1);
    return 0;
}
