// A simulated board: its top level, and the serial line to the host's pseudo-terminal.

module redline_system #(
    parameter int CYCLES = 4  // clock cycles a bit
) (
    input  bit   ap_clk,
    input  bit   ap_rst_n,
    input  bit   control_go,
    output logic control_busy,
    output logic irq           // the host has gone
);
    import "DPI-C" function int  serial_take(input bit idle);
    import "DPI-C" function void serial_give(input int data);
    import "DPI-C" function void serial_flush();
    import "DPI-C" function bit  serial_gone();

    // Longer than any frame takes to be executed: then nothing happens until the host speaks.
    localparam int QUIET = 8192;

    logic rx, tx, led_open, led_busy, led_error;

    // From a register: what depends on an input is evaluated at every edge.
    bit rst = 1;
    always_ff @(posedge ap_clk) rst <= !ap_rst_n;

    redline_board board (.clk(ap_clk), .rst, .rx, .tx, .led_open, .led_busy, .led_error);

    assign control_busy = control_go;

    // What the host sends, onto the line.
    logic [9:0] out = '1;
    int out_bits = 0, out_phase = 0, quiet = 0;
    int next;
    // What the board sends, off the line: each bit in its middle.
    logic [7:0] in = '0;
    int in_bits = 0, in_phase = 0, silent = 0;

    assign rx = out_bits == 0 || out[0];

    always_ff @(posedge ap_clk) begin
        irq <= serial_gone();
        quiet <= out_bits != 0 || in_bits != 0 || led_busy || rst ? 0 : quiet + int'(quiet < QUIET);
        if (out_bits != 0 && out_phase != 0) begin
            out_phase <= out_phase - 1;
        end else if (out_bits > 1) begin
            out <= {1'b1, out[9:1]};
            out_bits <= out_bits - 1;
            out_phase <= CYCLES - 1;
        end else begin
            out_bits <= 0;
            if (!rst) begin
                next = serial_take(quiet >= QUIET);
                if (next >= 0) begin
                    out <= {1'b1, next[7:0], 1'b0};
                    out_bits <= 10;
                    out_phase <= CYCLES - 1;
                end
            end
        end
    end

    always_ff @(posedge ap_clk) begin
        silent <= in_bits != 0 ? 0 : silent + int'(silent <= 4 * CYCLES);
        if (silent == 4 * CYCLES) serial_flush();
        if (in_bits == 0) begin
            if (!tx && !rst) begin
                in_bits <= 9;
                in_phase <= CYCLES + CYCLES / 2 - 1;
            end
        end else if (in_phase != 0) begin
            in_phase <= in_phase - 1;
        end else begin
            in_bits <= in_bits - 1;
            in_phase <= CYCLES - 1;
            in <= {tx, in[7:1]};
            if (in_bits == 1 && tx) serial_give(int'(in));
        end
    end
endmodule
