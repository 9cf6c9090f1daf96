// Register banks of adders whose operand bits may arrive late: the overclocking model of docs/architecture.md,
// "Overclocking". Appended to the generated Verilog of builds with `Config.overclock` (hw/overclocked.py instantiates them).
//
// Verilog and not Amaranth, for the simulator's sake: these loops stay loops, and run over the groups in use only. One
// module is the same bank of all lanes, each 32-bit word an element of an array, so that the compiler works on several
// lanes at once.
//
// For each group of output bits, masks say which operand bits those outputs see new; the others they see as they were
// one step before:
//
//   captured = OR over groups of ((A & M | A' & ~M) + (S & N | S' & ~N)) & outputs of the group
//
// `x ^ (x ^ y) & m` selects as `x & ~m | y & m` does. What only this bank's own process reads, or what changes only
// between launches, is assigned at once: that costs the simulator nothing while it stays as it is.

/* verilator lint_off DECLFILENAME */
/* verilator lint_off BLKSEQ */
/* verilator lint_off WIDTH */
/* verilator lint_off UNUSED */

// A bank of the adder tree.
module redline_capture_adder #(
    parameter LANES = 16,
    parameter GROUPS = 32,
    parameter BANK = 0
) (
    input clk,
    input forget,                // every bit is in time from now on
    input load,                  // a word of the masks arrives
    input [31:0] load_word,
    input [7:0] load_lane,
    input [7:0] load_group,
    input [7:0] load_operand,
    input [7:0] load_bank,
    input capture,               // a step's operands are at `a` and `s`
    input restart,               // the next step finds a history of zeros
    input [32*LANES-1:0] a,
    input [32*LANES-1:0] s,
    output reg [32*LANES-1:0] q
);
    reg [32*LANES-1:0] mask_a [0:GROUPS-1];
    reg [32*LANES-1:0] mask_s [0:GROUPS-1];
    reg [32*LANES-1:0] mask_q [0:GROUPS-1];
    reg [31:0] keep [0:LANES-1];
    reg [31:0] set [0:LANES-1];
    reg [31:0] sign [0:LANES-1];
    reg [7:0] used = 0;

    always @(posedge clk) begin
        if (load && load_bank == BANK) begin
            case (load_operand)
                8'd0: mask_a[load_group][32*load_lane +: 32] = load_word;
                8'd1: mask_s[load_group][32*load_lane +: 32] = load_word;
                8'd2: mask_q[load_group][32*load_lane +: 32] = load_word;
                8'd5: keep[load_lane] = load_word;
                8'd6: set[load_lane] = load_word;
                8'd8: sign[load_lane] = load_word;
                8'd7: used = load_word[7:0];
                default: ;
            endcase
        end
        if (forget) used = 0;
    end

    reg [31:0] old_a [0:LANES-1];
    reg [31:0] old_s [0:LANES-1];
    reg [31:0] diff_a [0:LANES-1];
    reg [31:0] diff_s [0:LANES-1];
    reg [31:0] sum [0:LANES-1];

    always @(posedge clk) begin : step
        if (used == 0) begin
            /* verilator unroll_full */
            for (int l = 0; l < LANES; l = l + 1) q[32*l +: 32] <= a[32*l +: 32] + s[32*l +: 32];
        end else begin
            if (capture) begin
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    diff_a[l] = a[32*l +: 32] ^ old_a[l];
                    diff_s[l] = s[32*l +: 32] ^ old_s[l];
                    sum[l] = 0;
                end
                /* verilator unroll_disable */
                for (int g = 0; g < used; g = g + 1) begin
                    /* verilator unroll_full */
                    for (int l = 0; l < LANES; l = l + 1) begin
                        sum[l] = sum[l] | (((old_a[l] ^ (diff_a[l] & mask_a[g][32*l +: 32]))
                                          + (old_s[l] ^ (diff_s[l] & mask_s[g][32*l +: 32])))
                                          & mask_q[g][32*l +: 32]);
                    end
                end
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    // The bits above the register's own are copies of its highest.
                    q[32*l +: 32] <= (((sum[l] & keep[l]) | set[l]) ^ sign[l]) - sign[l];
                    old_a[l] = a[32*l +: 32];
                    old_s[l] = s[32*l +: 32];
                end
            end
            if (restart) begin
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    old_a[l] = 0;
                    old_s[l] = 0;
                end
            end
        end
    end
endmodule

// The accumulators, with their load multiplexer: operand A is the bias in the first step of an output, else the
// accumulator. Select, bias and accumulator each reach operand A in their own time.
module redline_capture_accumulator #(
    parameter LANES = 16,
    parameter GROUPS = 32,
    parameter BANK = 0
) (
    input clk,
    input forget,
    input load,
    input [31:0] load_word,
    input [7:0] load_lane,
    input [7:0] load_group,
    input [7:0] load_operand,
    input [7:0] load_bank,
    input capture,
    input restart,
    input fresh,                 // this step's history is one of zeros: the accumulator counts as zero, too
    input first,                 // this step loads the bias
    input [32*LANES-1:0] s,
    input [32*LANES-1:0] bias,
    input [32*LANES-1:0] flips,  // soft errors: XORed into what is captured
    output reg [32*LANES-1:0] q
);
    reg [32*LANES-1:0] mask_a [0:GROUPS-1];
    reg [32*LANES-1:0] mask_s [0:GROUPS-1];
    reg [32*LANES-1:0] mask_q [0:GROUPS-1];
    reg [32*LANES-1:0] mask_bias [0:GROUPS-1];
    reg [32*LANES-1:0] mask_select [0:GROUPS-1];
    reg [31:0] keep [0:LANES-1];
    reg [31:0] set [0:LANES-1];
    reg [7:0] used = 0;

    always @(posedge clk) begin
        if (load && load_bank == BANK) begin
            case (load_operand)
                8'd0: mask_a[load_group][32*load_lane +: 32] = load_word;
                8'd1: mask_s[load_group][32*load_lane +: 32] = load_word;
                8'd2: mask_q[load_group][32*load_lane +: 32] = load_word;
                8'd3: mask_bias[load_group][32*load_lane +: 32] = load_word;
                8'd4: mask_select[load_group][32*load_lane +: 32] = load_word;
                8'd5: keep[load_lane] = load_word;
                8'd6: set[load_lane] = load_word;
                8'd7: used = load_word[7:0];
                default: ;
            endcase
        end
        if (forget) used = 0;
    end

    reg old_first;
    reg [31:0] now [0:LANES-1];
    reg [31:0] old_a [0:LANES-1];
    reg [31:0] old_s [0:LANES-1];
    reg [31:0] old_bias [0:LANES-1];
    reg [31:0] diff_a [0:LANES-1];
    reg [31:0] diff_s [0:LANES-1];
    reg [31:0] diff_bias [0:LANES-1];
    reg [31:0] sum [0:LANES-1];

    always @(posedge clk) begin : step
        reg [31:0] selects, diff_select, select;
        if (used == 0) begin
            if (capture) begin
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    q[32*l +: 32] <= ((first ? bias[32*l +: 32] : q[32*l +: 32]) + s[32*l +: 32]) ^ flips[32*l +: 32];
                end
            end
        end else begin
            if (capture) begin
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    now[l] = fresh ? 32'd0 : q[32*l +: 32];
                    diff_a[l] = now[l] ^ old_a[l];
                    diff_s[l] = s[32*l +: 32] ^ old_s[l];
                    sum[l] = 0;
                end
                if (first || old_first) begin
                    selects = {32{old_first}};
                    diff_select = {32{old_first ^ first}};
                    /* verilator unroll_full */
                    for (int l = 0; l < LANES; l = l + 1) diff_bias[l] = bias[32*l +: 32] ^ old_bias[l];
                    /* verilator unroll_disable */
                    for (int g = 0; g < used; g = g + 1) begin
                        /* verilator unroll_full */
                        for (int l = 0; l < LANES; l = l + 1) begin
                            select = selects ^ (diff_select & mask_select[g][32*l +: 32]);
                            sum[l] = sum[l] | ((((select & (old_bias[l] ^ (diff_bias[l] & mask_bias[g][32*l +: 32])))
                                              | (~select & (old_a[l] ^ (diff_a[l] & mask_a[g][32*l +: 32]))))
                                              + (old_s[l] ^ (diff_s[l] & mask_s[g][32*l +: 32])))
                                              & mask_q[g][32*l +: 32]);
                        end
                    end
                end else begin
                    // Neither this step nor the one before selects the bias.
                    /* verilator unroll_disable */
                    for (int g = 0; g < used; g = g + 1) begin
                        /* verilator unroll_full */
                        for (int l = 0; l < LANES; l = l + 1) begin
                            sum[l] = sum[l] | (((old_a[l] ^ (diff_a[l] & mask_a[g][32*l +: 32]))
                                              + (old_s[l] ^ (diff_s[l] & mask_s[g][32*l +: 32])))
                                              & mask_q[g][32*l +: 32]);
                        end
                    end
                end
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    q[32*l +: 32] <= ((sum[l] ^ flips[32*l +: 32]) & keep[l]) | set[l];
                    old_a[l] = now[l];
                    old_s[l] = s[32*l +: 32];
                    old_bias[l] = bias[32*l +: 32];
                end
                old_first = first;
            end
            if (restart) begin
                /* verilator unroll_full */
                for (int l = 0; l < LANES; l = l + 1) begin
                    old_a[l] = 0;
                    old_s[l] = 0;
                    old_bias[l] = 0;
                end
                old_first = 0;
            end
        end
    end
endmodule

/* verilator lint_on UNUSED */
/* verilator lint_on WIDTH */
/* verilator lint_on BLKSEQ */
/* verilator lint_on DECLFILENAME */
