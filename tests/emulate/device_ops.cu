/* device_ops.cu against loops on the host. */
#include "device_ops.h"

#include "cuda.h"
#include "on_device.h"

typedef std::vector<float> floats;

template <class T> static std::vector<T>
rounded(const floats &x)
{
    std::vector<T> y(x.size());

    for (size_t i = 0; i < x.size(); i++)
        y[i] = sd::from_float<T>(x[i]);
    return y;
}

template <class T> static enum sd_dtype dtype(void) { return sd::dtype_of<T>::value; }

template <class Y, class X> static void
check_cast(struct sd_device *d, int64_t rows, int64_t cols, int64_t to_pitch, int64_t from_pitch, size_t shift)
{
    std::vector<X> x = rounded<X>(numbers((size_t)(rows * from_pitch) + shift, 1));
    std::vector<Y> y = rounded<Y>(numbers((size_t)(rows * to_pitch) + shift, 2)), stored = y, added = y;
    X *dx = up(d, x);
    Y *dy = up(d, y);

    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            size_t at = (size_t)(r * to_pitch + c) + shift;
            float from = sd::to_float(x[(size_t)(r * from_pitch + c) + shift]);

            stored[at] = sd::from_float<Y>(from);
            added[at] = sd::from_float<Y>(sd::to_float(added[at]) + from);
        }
    sd_device_rows(d, dy + shift, dtype<Y>(), to_pitch, dx + shift, dtype<X>(), from_pitch, rows, cols, true);
    CHECK(same_bits(down(d, dy, y.size()), added), "%s to %s, %lld x %lld, pitches %lld and %lld, from %zu: added", sd_dtype_name(dtype<X>()),
          sd_dtype_name(dtype<Y>()), (long long)rows, (long long)cols, (long long)from_pitch, (long long)to_pitch, shift);
    sd_device_write(d, dy, y.data(), y.size() * sizeof(Y));
    sd_device_rows(d, dy + shift, dtype<Y>(), to_pitch, dx + shift, dtype<X>(), from_pitch, rows, cols, false);
    CHECK(same_bits(down(d, dy, y.size()), stored), "the same, stored");
    sd_device_free(d, dx);
    sd_device_free(d, dy);
}

template <class Y, class X> static void
check_casts(struct sd_device *d)
{
    check_cast<Y, X>(d, 1, 5000, 5000, 5000, 0);
    check_cast<Y, X>(d, 1, 1001, 1001, 1001, 1);        /* nothing is aligned */
    check_cast<Y, X>(d, 7, 48, 64, 56, 0);
    check_cast<Y, X>(d, 5, 13, 21, 17, 0);
    check_cast<Y, X>(d, 130, 3, 3, 8, 3);
}

template <class Y, class X> static void
check_taps(struct sd_device *d)
{
    enum { OUT = 5, IN = 7, KH = 3, KW = 2 };
    std::vector<X> x = rounded<X>(numbers(OUT * IN * KH * KW, 3));
    std::vector<Y> y(x.size());
    X *dx = up(d, x);
    Y *dy = up(d, y);

    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++)
            for (int t = 0; t < KH * KW; t++)
                y[(size_t)((o * KH * KW + t) * IN + i)] = sd::from_float<Y>(sd::to_float(x[(size_t)((o * IN + i) * KH * KW + t)]));
    sd_device_taps(d, dy, dtype<Y>(), dx, dtype<X>(), OUT, IN, KH, KW);
    CHECK(same_bits(down(d, dy, y.size()), y), "taps, %s to %s", sd_dtype_name(dtype<X>()), sd_dtype_name(dtype<Y>()));
    sd_device_free(d, dx);
    sd_device_free(d, dy);
}

/* A number times its place, so that no sum is another's: the elements that fall on one pixel of a doubled picture. */
template <class Y, class X> static void
check_taps_upsampled(struct sd_device *d, int kh, int kw)
{
    const int out = 3, in = 2;
    std::vector<X> x = rounded<X>(numbers((size_t)(out * in * kh * kw), 3));
    std::vector<Y> y((size_t)(out * in * (kh + 1) * (kw + 1)));
    X *dx = up(d, x);
    Y *dy = up(d, y);

    for (int i = 0; i < in; i++)
        for (int t = 0; t <= kh; t++)
            for (int u = 0; u <= kw; u++)
                for (int o = 0; o < out; o++) {
                    float sum = 0;

                    for (int ky = 0; ky < kh; ky++)     /* on pixel 0, whose first place is t - (kh - 1) */
                        for (int kx = 0; kx < kw; kx++)
                            if ((t - (kh - 1) + ky) >> 1 == 0 && (u - (kw - 1) + kx) >> 1 == 0)
                                sum += sd::to_float(x[(size_t)(((o * in + i) * kh + ky) * kw + kx)]);
                    y[(size_t)(((i * (kh + 1) + t) * (kw + 1) + u) * out + o)] = sd::from_float<Y>(sum);
                }
    for (int o = 0; o < out; o += 2)            /* two outputs, and the last alone: as weights are sent in pieces */
        sd_device_taps_upsampled(d, dy + o, dtype<Y>(), out, dx + o * in * kh * kw, dtype<X>(), o + 2 < out ? 2 : out - o, in, kh, kw);
    CHECK(same_bits(down(d, dy, y.size()), y), "%d x %d taps of a doubled picture, %s to %s", kh, kw, sd_dtype_name(dtype<X>()),
          sd_dtype_name(dtype<Y>()));
    sd_device_free(d, dx);
    sd_device_free(d, dy);
}

template <class T> static void
check_finite(struct sd_device *d)
{
    static const struct { int64_t rows, cols, pitch; } shapes[] = { { 1, 3000, 3000 }, { 9, 37, 37 }, { 9, 37, 40 }, { 4, 64, 72 } };

    for (auto s : shapes) {
        floats x = numbers((size_t)(s.rows * s.pitch), 4);
        std::vector<int> flag(1);
        int *dflag = up(d, flag), wrong = 0;
        T *dx = up(d, rounded<T>(x));

        for (int64_t r = 0; r < s.rows; r++)            /* between the rows anything goes */
            for (int64_t c = s.cols; c < s.pitch; c++)
                x[(size_t)(r * s.pitch + c)] = NAN;
        sd_device_write(d, dx, rounded<T>(x).data(), x.size() * sizeof(T));
        sd_device_finite(d, dx, dtype<T>(), s.rows, s.cols, s.pitch, dflag);
        wrong += down(d, dflag, 1)[0] != 0;
        for (int64_t at : { (int64_t)0, s.cols - 1, (s.rows - 1) * s.pitch + s.cols - 1, (s.rows / 2) * s.pitch + s.cols / 2 })
            for (float value : { NAN, INFINITY, -INFINITY }) {
                T bad = sd::from_float<T>(value), good = sd::from_float<T>(x[(size_t)at]);
                int zero = 0;

                sd_device_write(d, dflag, &zero, sizeof zero);
                sd_device_write(d, dx + at, &bad, sizeof bad);
                sd_device_finite(d, dx, dtype<T>(), s.rows, s.cols, s.pitch, dflag);
                wrong += down(d, dflag, 1)[0] != 1;
                sd_device_write(d, dx + at, &good, sizeof good);
            }
        CHECK(!wrong, "finite, %s, %lld x %lld of %lld: %d wrong of 13", sd_dtype_name(dtype<T>()), (long long)s.rows, (long long)s.cols,
              (long long)s.pitch, wrong);
        sd_device_free(d, dflag);
        sd_device_free(d, dx);
    }
}

template <class T> static void
check_all(struct sd_device *d)
{
    std::vector<T> x(777, sd::from_float<T>(7)), y = x;
    T *dx = up(d, x);

    for (size_t i = 3; i < 770; i++)
        y[i] = sd::from_float<T>(-0.3f);
    sd_device_fill_real(d, dx + 3, dtype<T>(), 767, -0.3f);
    CHECK(same_bits(down(d, dx, 777), y), "fill, %s", sd_dtype_name(dtype<T>()));
    sd_device_free(d, dx);
    check_casts<T, float>(d);
    check_casts<T, sd::bf16>(d);
    check_casts<T, sd::f16>(d);
    check_taps<T, float>(d);
    check_taps<T, sd::f16>(d);
    check_taps_upsampled<T, float>(d, 3, 3);
    check_taps_upsampled<T, sd::bf16>(d, 2, 5);
    check_taps_upsampled<T, T>(d, 1, 1);
    check_finite<T>(d);
}

int
main(void)
{
    struct sd_device *d = open_device();

    check_all<float>(d);
    check_all<sd::bf16>(d);
    check_all<sd::f16>(d);
    sd_device_close(d);
    return check_done();
}
