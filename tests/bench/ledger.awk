# ledger.awk - files of SD_EMULATE_DRY (tests/emulate/dry.cpp), named ROW.dry, as tables: what a step of each row launches.
# A step is the largest recording; of several the last.
# Of a library's call the key says the shapes, hence operations and compulsory bytes: each operand read once, each result written
# once.  Bound: the larger of operations over FLOPS and bytes over BYTES.  Nothing of this is measured.
BEGIN {
    FS = "\t"
    FLOPS = 790e12; BYTES = 4.3e12; LAUNCH = 1e-6
    size[0] = 4; size[2] = 2; size[14] = 2; dtype[0] = "F32"; dtype[2] = "F16"; dtype[14] = "BF16"
    size["F32"] = 4; size["F16"] = 2; size["BF16"] = 2
    kinds = split("ours gemm conv attention driver", kind_name, " ")
}
FNR == 1 {
    row = FILENAME; sub(/.*\//, "", row); sub(/\.dry$/, "", row)
    row_name[++rows] = row; most = 0
}
$1 == "recording" {
    on = $3 >= most
    if (on) { most = $3; chosen[row] = $2; launches[row] = 0; begin(row) }
    next
}
$1 == "replay" { on = 0; replays[row, $2]++; last[row] = $2 > last[row] ? $2 : last[row]; next }
!on { next }
$1 == "kernel" {
    sub(/.*\//, "", $2); sub(/\.cu$/, "", $2); gsub(/^\(|\)$/, "", $3)
    put("ours", $2 ": `" $3 "`", 0, 0)
    at = row SUBSEP place[row, $2 ": `" $3 "`"]; grid = plain($4) " of " plain($5)
    if (!((at, grid) in grid_count)) grid_list[at, ++grids[at]] = grid
    grid_count[at, grid]++
}
$1 == "library" { split($2, w, " "); if (w[1] == "gemm") gemm(); else if (w[1] == "conv") conv(); else if (w[1] == "attention") attention(); else if ($2 == "an attempt") put("driver", $2, 0, 0); else bad() }
$1 == "fill" { put("driver", "fill", 0, $2) }
$1 == "copy" { put("driver", "copy", 0, 2 * $2) }

function plain(x) { sub(/(x1)?x1$/, "", x); return x }
function bad() { print "ledger: what is \"" $0 "\"?" > "/dev/stderr"; failed = 1; exit 1 }
function begin(r,  i, k) {
    for (i = 1; i <= lines[r]; i++) {
        for (k = 1; k <= grids[r SUBSEP i]; k++) delete grid_count[r SUBSEP i, grid_list[r SUBSEP i, k]]
        delete place[r, what[r, i]]; delete grids[r SUBSEP i]
    }
    lines[r] = 0
}
function put(kind, text, flops, bytes,  i) {
    launches[row]++
    if (!((row, text) in place)) { i = place[row, text] = ++lines[row]; what[row, i] = text; of_kind[row, i] = kind; calls[row, i] = all_flops[row, i] = all_bytes[row, i] = bound[row, i] = 0 }
    i = place[row, text]
    calls[row, i]++; all_flops[row, i] += flops; all_bytes[row, i] += bytes
    if (kind != "ours") bound[row, i] += flops / FLOPS > bytes / BYTES ? flops / FLOPS : bytes / BYTES
}
# gemm COLUMNSxROWSxDEPTH/TYPE>TYPE tn [bias] [add] [tf32] ld ... xBATCH,... : the library's words for it, in columns
function gemm(  n, t, b, i, text, batch, out, apart) {
    split(w[2], n, /[x\/>]/); text = "gemm " n[1] "x" n[2] "x" n[3] " " dtype[n[4]] (n[4] != n[5] ? " to " dtype[n[5]] : "") " " w[3]
    if (!(n[4] in size) || !(n[5] in size)) bad()
    out = 1; b = 0
    for (i = 4; i in w && w[i] != "ld"; i++) { text = text " " w[i]; if (w[i] == "add") out = 2; if (w[i] == "bias") b = n[1] * size[n[5]] }
    if (!(i + 2 in w)) bad()
    split(substr(w[i + 2], 2), apart, ","); batch = apart[1]
    if (batch > 1) text = text " x" batch
    put("gemm", text, 2 * n[1] * n[2] * n[3] * batch,
        (apart[2] + 0 ? batch : 1) * n[1] * n[3] * size[n[4]] + (apart[3] + 0 ? batch : 1) * n[3] * n[2] * size[n[4]] + batch * out * n[1] * n[2] * size[n[5]] + b)
}
# conv KIND TYPE BxHxWxC>HxWxC k HxW/STRIDE pad ... [bias] [channels] [residual]
function conv(  n, k, i, x, y, weight, s, text, more) {
    if (split(w[4], n, /[x>]/) != 7 || split(w[6], k, /[x\/]/) != 3 || !(w[3] in size)) bad()
    s = size[w[3]]; x = n[1] * n[2] * n[3] * n[4]; y = n[1] * n[5] * n[6] * n[7]; weight = k[1] * k[2] * n[4] * n[7]
    text = "convolution" (w[2] == 1 ? ", data gradient" : w[2] == 2 ? ", weight gradient" : "") " " w[4] " " w[3] " " w[6]
    for (i = 9; i in w; i++) { text = text " " w[i]; more += w[i] == "residual" ? y * s : w[i] == "bias" ? n[7] * 4 : w[i] == "channels" ? n[1] * n[7] * s : 0 }
    put("conv", text, 2 * y * weight / n[7], (x + y) * s + weight * (w[2] == 2 ? 4 : s) + more)
}
# attention [back|only] TYPE BxHEADSxLxSxD ld ... d ...: back makes three gradients, wanted or not
function attention(  i, n, q, k, s, back) {
    i = w[2] in size ? 2 : 3; back = w[2] == "back"
    if (!(w[i] in size) || split(w[i + 1], n, "x") != 5) bad()
    s = size[w[i]]; q = n[1] * n[2] * n[3] * n[5] * s; k = n[1] * n[2] * n[4] * n[5] * s
    put("attention", "attention" (back ? ", gradient" : "") " " w[i + 1] " " w[i], (back ? 10 : 4) * n[1] * n[2] * n[3] * n[4] * n[5],
        (back ? 4 : 2) * (q + k) + (w[2] == "only" ? 0 : 4 * n[1] * n[2] * n[3]))
}

function number(x, digits) { return x ? sprintf("%." digits "f", x) : "–" }
# the lines of a kind, by bound, then by calls
function sort(r, kind,  i, j, t) {
    count = 0
    for (i = 1; i <= lines[r]; i++) if (of_kind[r, i] == kind) {
        for (j = count++; j > 0 && (bound[r, order[j]] < bound[r, i] || (bound[r, order[j]] == bound[r, i] && calls[r, order[j]] < calls[r, i])); j--) order[j + 1] = order[j]
        order[j + 1] = i
    }
}
function sums(r,  i, k) {
    total_flops = total_bytes = total_bound = 0
    for (k = 1; k <= kinds; k++) of[kind_name[k]] = 0
    for (i = 1; i <= lines[r]; i++) {
        of[of_kind[r, i]] += calls[r, i]; total_flops += all_flops[r, i]
        if (of_kind[r, i] != "ours") total_bytes += all_bytes[r, i]
        total_bound += bound[r, i]
    }
}
function grids_of(r, i,  at, k, j, text, best) {
    at = r SUBSEP i; text = ""
    for (k = 1; k <= 4 && k <= grids[at]; k++) {
        best = 0
        for (j = 1; j <= grids[at]; j++) if (!(grid_list[at, j] in shown) && (!best || grid_count[at, grid_list[at, j]] > grid_count[at, grid_list[at, best]])) best = j
        shown[grid_list[at, best]]
        text = text (k > 1 ? ", " : "") grid_count[at, grid_list[at, best]] " x " grid_list[at, best]
    }
    split("", shown)
    return text (grids[at] > 4 ? ", " grids[at] - 4 " other grids" : "")
}
END {
    if (failed) exit 1
    print "| row | launches | ours | cuBLASLt | cuDNN convolution | cuDNN attention | copies, fills | TFLOP | GB | bound ms | floor ms |"
    print "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for (k = 1; k <= rows; k++) {
        r = row_name[k]
        if (!lines[r]) { print "ledger: " r ": no recording was replayed" > "/dev/stderr"; exit 1 }
        sums(r)
        printf "| %s | %d | %d | %d | %d | %d | %d | %s | %s | %s | %s |\n", r, launches[r], of["ours"], of["gemm"], of["conv"], of["attention"], of["driver"], number(total_flops * 1e-12, 3), number(total_bytes * 1e-9, 2), number(total_bound * 1e3, 2), number(total_bound * 1e3 + launches[r] * LAUNCH * 1e3, 2)
    }
    for (k = 1; k <= rows; k++) {
        r = row_name[k]
        printf "\n## %s\n\n", r
        for (j = 1; j <= last[r]; j++) if (j != chosen[r] && replays[r, j] > 1) printf "Not all: another recording is replayed too, %d times against %d.\n\n", replays[r, j], replays[r, chosen[r]]
        print "| launches | what | grid of block | GFLOP | MB | bound us |"
        print "| --- | --- | --- | --- | --- | --- |"
        for (m = 1; m <= kinds; m++) {
            sort(r, kind_name[m])
            for (j = 1; j <= count; j++) { i = order[j]; printf "| %d | %s | %s | %s | %s | %s |\n", calls[r, i], what[r, i], grids_of(r, i), number(all_flops[r, i] * 1e-9, 1), number(all_bytes[r, i] * 1e-6, 2), number(bound[r, i] * 1e6, 1) }
        }
    }
}
