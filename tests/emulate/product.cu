/* The products that tests of ops are too small or too even for: every tile and form of gemm.cu, batches, all ways A and
 * B can lie, the enlarged picture as a transposed convolution.  Numbers are small multiples of 1/8, so that every sum is exact in
 * f32: results must be equal, not near. */
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "cuda.h"
#include "on_device.h"
#include "product_cuda.h"

using namespace sd;

namespace {

struct sd_device *device;
uint32_t state = 12345;

float
draw(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)((int)(state >> 16) % 9 - 4) / 8;
}

/* rows x columns, `pitch` apart, in T; what lies between is NaN */
template <class T> struct matrix {
    std::vector<T> host;
    T *on;
    int64_t pitch;

    matrix(int64_t rows, int64_t columns, int64_t pitch_, bool random) : host((size_t)(rows * pitch_) + 16), pitch(pitch_)
    {
        for (size_t i = 0; i < host.size(); i++)
            host[i] = from_float<T>(NAN);
        for (int64_t r = 0; random && r < rows; r++)
            for (int64_t c = 0; c < columns; c++)
                host[(size_t)(r * pitch + c)] = from_float<T>(draw());
        on = static_cast<T *>(sd_device_alloc(device, host.size() * sizeof(T), "matrix"));
        sd_device_write(device, on, host.data(), host.size() * sizeof(T));
    }
    ~matrix() { sd_device_free(device, on); }
    void fetch(void) { sd_device_read(device, host.data(), on, host.size() * sizeof(T)); }
    float at(int64_t r, int64_t c) const { return to_float(host[(size_t)(r * pitch + c)]); }
};

struct how { int rows, columns, depth, batch; bool a_turned, b_turned; int a_extra, b_extra, d_extra; bool f32, bias, add; };

template <class T, class U> void
check_gemm(const struct how &h)
{
    int batch = h.batch;
    int64_t a_rows = h.a_turned ? h.depth : h.rows, a_columns = h.a_turned ? h.rows : h.depth;
    int64_t b_rows = h.b_turned ? h.columns : h.depth, b_columns = h.b_turned ? h.depth : h.columns;
    matrix<T> a(a_rows * batch, a_columns, a_columns + h.a_extra, true), b(b_rows * batch, b_columns, b_columns + h.b_extra, true);
    matrix<U> d(h.rows * batch, h.columns, h.columns + h.d_extra, h.add);
    matrix<float> bias(1, h.columns, h.columns, true);
    std::vector<U> before = d.host;
    struct gemm_call g = {};
    void *scratch;
    int64_t wrong = 0, touched = 0;

    g.rows = h.rows;
    g.columns = h.columns;
    g.depth = h.depth;
    g.dtype = dtype_of<T>::value;
    g.d_dtype = dtype_of<U>::value;
    g.a_turned = h.a_turned;
    g.b_turned = h.b_turned;
    g.a_pitch = a.pitch;
    g.b_pitch = b.pitch;
    g.c_pitch = g.d_pitch = d.pitch;
    g.batch = batch;
    g.a_batch = a_rows * a.pitch;
    g.b_batch = b_rows * b.pitch;
    g.c_batch = g.d_batch = h.rows * d.pitch;
    g.a = a.on;
    g.b = b.on;
    g.d = d.on;
    g.c = h.add ? d.on : nullptr;
    g.bias = h.bias ? bias.on : nullptr;
    scratch = sd_device_alloc(device, gemm_scratch(&g) + 1, "scratch");
    g.scratch = gemm_scratch(&g) ? scratch : nullptr;
    gemm_cuda(device, &g);
    d.fetch();
    sd_device_free(device, scratch);
    for (int z = 0; z < batch; z++)
        for (int r = 0; r < h.rows; r++)
            for (int c = 0; c < h.columns; c++) {
                double sum = (h.bias ? bias.at(0, c) : 0) + (h.add ? to_float(before[(size_t)((z * h.rows + r) * d.pitch + c)]) : 0);

                for (int k = 0; k < h.depth; k++)
                    sum += (double)(h.a_turned ? a.at((int64_t)z * h.depth + k, r) : a.at((int64_t)z * h.rows + r, k)) *
                           (double)(h.b_turned ? b.at((int64_t)z * h.columns + c, k) : b.at((int64_t)z * h.depth + k, c));
                wrong += d.at((int64_t)z * h.rows + r, c) != to_float(from_float<U>((float)sum));
            }
    for (int64_t r = 0; r < (int64_t)h.rows * batch; r++)
        for (int64_t c = h.columns; c < d.pitch; c++)
            touched += d.at(r, c) == d.at(r, c);
    CHECK(wrong == 0 && touched == 0,
          "%d products %d x %d x %d of %s%s%s to %s, pitch +%d +%d +%d%s%s: %lld wrong, %lld touched between rows", batch, h.rows,
          h.columns, h.depth, sd_dtype_name(g.dtype), h.a_turned ? ", A turned" : "", h.b_turned ? ", B turned" : "",
          sd_dtype_name(g.d_dtype), h.a_extra, h.b_extra, h.d_extra, h.bias ? ", bias" : "", h.add ? ", added" : "",
          (long long)wrong, (long long)touched);
}

template <class T> void
check_gemms(void)
{
    static const struct how hows[] = {
        /* 128x128, with edges on both sides, then 128x64: fast forms */
        { 4000, 312, 40, 1, false, true, 0, 0, 0, false, true, true },
        { 4000, 312, 40, 1, false, false, 8, 8, 8, true, true, false },
        { 1640, 1224, 40, 1, true, false, 8, 0, 0, true, false, true },
        { 3968, 640, 8, 1, false, true, 0, 0, 0, false, false, false },
        { 3960, 632, 8, 1, false, false, 0, 8, 0, false, true, false },
        { 3960, 632, 8, 1, true, false, 0, 0, 8, true, true, true },
        /* thin sides, fast and general; split depth */
        { 200, 16, 600, 1, false, true, 0, 0, 0, false, true, true },
        { 200, 24, 96, 1, false, false, 8, 0, 0, false, false, false },
        { 320, 8, 1100, 1, true, false, 0, 0, 0, true, false, true },
        { 8, 320, 1100, 1, true, false, 0, 8, 0, true, false, true },
        { 3, 200, 264, 1, false, true, 0, 0, 0, false, true, false },
        { 20, 200, 264, 1, false, false, 0, 0, 0, false, true, false },
        { 200, 4, 41, 1, false, true, 1, 2, 3, false, true, true },
        { 130, 5, 4, 1, false, false, 0, 0, 0, false, true, true },
        { 5, 131, 300, 1, true, false, 1, 1, 1, true, false, true },
        /* one by one, by four, and both turned */
        { 70, 75, 67, 1, false, true, 0, 0, 0, false, true, true },
        { 70, 76, 68, 1, false, false, 4, 4, 4, false, true, true },
        { 72, 80, 96, 1, true, true, 0, 0, 0, false, true, true },
        { 65, 67, 31, 1, true, true, 1, 2, 3, true, true, true },
        { 66, 130, 1000, 1, false, true, 0, 0, 0, false, true, true },
        /* batches */
        { 40, 48, 520, 3, false, true, 0, 0, 0, false, true, true },
        { 33, 17, 35, 2, true, false, 1, 0, 0, false, false, false },
        /* nothing to sum */
        { 6, 10, 0, 1, false, true, 8, 8, 0, false, true, true },
        { 1, 1, 1, 1, false, true, 0, 0, 0, false, false, false },
    };

    for (size_t i = 0; i < sizeof hows / sizeof *hows; i++)
        if (hows[i].f32)
            check_gemm<T, float>(hows[i]);
        else
            check_gemm<T, T>(hows[i]);
}

struct shape { int batch, height, width, in, out, kernel, top, left, bottom, right, upsample, stride; };

/* The kernel of the transposed convolution: what of w falls on pixel 0, whose places begin kernel - 1 before it. */
template <class T> void
sum_taps(matrix<T> &to, const matrix<T> &w, const struct shape &s)
{
    int taps = s.kernel + 1;

    for (int c = 0; c < s.in; c++)
        for (int tap = 0; tap < taps * taps; tap++)
            for (int o = 0; o < s.out; o++) {
                float sum = 0;

                for (int k = 0; k < s.kernel * s.kernel; k++)
                    if ((tap / taps - (s.kernel - 1) + k / s.kernel) >> 1 == 0 && (tap % taps - (s.kernel - 1) + k % s.kernel) >> 1 == 0)
                        sum += w.at(o, k * s.in + c);
                to.host[(size_t)(c * to.pitch + tap * s.out + o)] = from_float<T>(sum);
            }
    sd_device_write(device, to.on, to.host.data(), to.host.size() * sizeof(T));
}

template <class T> void
check_conv(const struct shape &s, enum conv_kind kind, bool add)
{
    static const char *const names[] = { "forward", "data gradient", "weight gradient" };
    struct conv_call k = {};
    int64_t oh = (s.height * s.upsample + s.top + s.bottom - s.kernel) / s.stride + 1;
    int64_t ow = (s.width * s.upsample + s.left + s.right - s.kernel) / s.stride + 1;
    int64_t pixels = (int64_t)s.batch * s.height * s.width, outs = s.batch * oh * ow, taps = s.kernel * s.kernel, wrong = 0;
    matrix<T> sums(s.in, (s.kernel + 1) * (s.kernel + 1) * s.out, (s.kernel + 1) * (s.kernel + 1) * s.out, false);
    matrix<T> x(pixels, s.in, s.in, kind != CONV_DATA || add), w(s.out, taps * s.in, taps * s.in, true);
    matrix<T> y(outs, s.out, s.out, kind != CONV_FORWARD || add), channels(s.batch, s.out, s.out + (s.width % 2 ? 8 : 3), true);
    matrix<float> dw(s.out, taps * s.in, taps * s.in, add), bias(1, s.out, s.out, true);
    std::vector<double> sum;
    void *scratch;

    for (int64_t i = 0; i < (kind == CONV_FORWARD ? outs * s.out : kind == CONV_DATA ? pixels * s.in : taps * s.in * s.out); i++) {
        double start = !add ? 0 : (double)(kind == CONV_FORWARD ? to_float(y.host[(size_t)i]) :
                                           kind == CONV_DATA ? to_float(x.host[(size_t)i]) : dw.host[(size_t)i]);

        sum.push_back(kind == CONV_FORWARD ? start + bias.at(0, i % s.out) + channels.at(i / (oh * ow * s.out), i % s.out) : start);
    }
    for (int64_t p = 0; p < outs; p++)
        for (int64_t tap = 0; tap < taps; tap++) {
            int64_t i = p / ow % oh * s.stride + tap / s.kernel - s.top, j = p % ow * s.stride + tap % s.kernel - s.left, from;

            if (i < 0 || j < 0 || i >= s.height * s.upsample || j >= s.width * s.upsample)
                continue;
            from = (p / ow / oh * s.height + i / s.upsample) * s.width + j / s.upsample;
            for (int o = 0; o < s.out; o++)
                for (int c = 0; c < s.in; c++) {
                    if (kind == CONV_FORWARD)
                        sum[(size_t)(p * s.out + o)] += (double)x.at(from, c) * (double)w.at(o, tap * s.in + c);
                    else if (kind == CONV_DATA)
                        sum[(size_t)(from * s.in + c)] += (double)y.at(p, o) * (double)w.at(o, tap * s.in + c);
                    else
                        sum[(size_t)((o * s.in + c) * taps + tap)] += (double)y.at(p, o) * (double)x.at(from, c);
                }
        }
    k.kind = kind;
    k.dtype = dtype_of<T>::value;
    k.batch = s.batch;
    k.height = s.height;
    k.width = s.width;
    k.in = s.in;
    k.out_height = oh;
    k.out_width = ow;
    k.out = s.out;
    k.kernel_height = k.kernel_width = s.kernel;
    k.stride = s.stride;
    k.top = s.top;
    k.left = s.left;
    k.bottom = s.bottom;
    k.right = s.right;
    k.upsample = s.upsample;
    k.x = kind == CONV_DATA ? nullptr : x.on;
    k.w = kind == CONV_WEIGHT ? nullptr : w.on;
    k.dy = kind == CONV_FORWARD ? nullptr : y.on;
    k.to = kind == CONV_FORWARD ? (void *)y.on : kind == CONV_DATA ? (void *)x.on : dw.on;
    k.add = add && kind == CONV_WEIGHT;
    k.residual = add && kind == CONV_DATA ? x.on : nullptr;
    if (kind == CONV_FORWARD) {
        k.bias = bias.on;
        k.channel_add = channels.on;
        k.channel_add_pitch = channels.pitch;
        k.residual = add ? y.on : nullptr;
    }
    if (s.upsample == 2 && kind != CONV_WEIGHT) {
        sum_taps(sums, w, s);
        k = conv_transposed(&k);
        k.w = sums.on;
    }
    scratch = sd_device_alloc(device, conv_scratch(&k) + 1, "scratch");
    k.scratch = conv_scratch(&k) ? scratch : nullptr;
    conv_cuda(device, &k);
    x.fetch();
    y.fetch();
    dw.fetch();
    sd_device_free(device, scratch);
    for (size_t i = 0; i < sum.size(); i++)
        wrong += kind == CONV_WEIGHT ? dw.host[i] != (float)sum[i] :
                 to_float((kind == CONV_DATA ? x : y).host[i]) != to_float(from_float<T>((float)sum[i]));
    CHECK(wrong == 0, "conv %dx%d of %dx%dx%dx%d to %d, stride %d, enlarged %d, padding %d %d %d %d, %s of %s%s: %lld of %zu wrong",
          s.kernel, s.kernel, s.batch, s.height, s.width, s.in, s.out, s.stride, s.upsample, s.top, s.left, s.bottom, s.right,
          names[kind], sd_dtype_name(k.dtype), add ? ", added" : "", (long long)wrong, sum.size());
}

template <class T> void
check_convs(void)
{
    static const struct shape shapes[] = {
        { 2, 24, 47, 8, 16, 3, 1, 1, 1, 1, 2, 1 },
        { 1, 40, 31, 5, 3, 3, 0, 2, 1, 1, 2, 1 },
        { 1, 35, 37, 4, 8, 2, 1, 0, 0, 1, 2, 1 },
        { 1, 34, 33, 4, 6, 5, 2, 1, 3, 2, 2, 1 },
        { 2, 7, 9, 8, 24, 3, 1, 1, 1, 1, 2, 1 },
        { 2, 19, 18, 16, 40, 3, 1, 1, 1, 1, 1, 1 },
        { 2, 19, 18, 40, 4, 3, 0, 0, 1, 1, 1, 2 },
        { 1, 23, 20, 4, 33, 5, 2, 2, 1, 0, 1, 3 },
        { 1, 3, 70, 3, 9, 1, 0, 0, 0, 0, 1, 2 },
    };

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = 0; kind < 3; kind++)
            check_conv<T>(shapes[i], (enum conv_kind)kind, (i + (size_t)kind) % 2 == 0);
}

}   /* namespace */

int
main(void)
{
    device = open_device();
    check_gemms<bf16>();
    check_gemms<f16>();
    check_gemms<float>();
    check_convs<bf16>();
    check_convs<float>();
    sd_device_close(device);
    return check_done();
}
