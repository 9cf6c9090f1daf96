// AXI4 memory over the host's mapped file: handshakes here, data and timing in native/memory.cpp.
//
// Several bursts are outstanding on each side and answered in order. Nothing is called in a cycle in which
// nothing is outstanding.

module axi_memory #(
    parameter int PORT_BITS = 128,
    parameter int OUTSTANDING = 16
) (
    input  bit                     clk,
    input  bit                     rst_n,
    input  logic                   awvalid,
    output logic                   awready,
    input  logic [63:0]            awaddr,
    input  logic [7:0]             awlen,
    input  logic [2:0]             awsize,
    input  logic [1:0]             awburst,
    input  logic                   wvalid,
    output logic                   wready,
    input  logic [PORT_BITS-1:0]   wdata,
    input  logic [PORT_BITS/8-1:0] wstrb,
    input  logic                   wlast,
    output logic                   bvalid,
    input  logic                   bready,
    output logic [1:0]             bresp,
    input  logic                   arvalid,
    output logic                   arready,
    input  logic [63:0]            araddr,
    input  logic [7:0]             arlen,
    input  logic [2:0]             arsize,
    input  logic [1:0]             arburst,
    output logic                   rvalid,
    input  logic                   rready,
    output logic [PORT_BITS-1:0]   rdata,
    output logic                   rlast,
    output logic [1:0]             rresp
);
    import "DPI-C" function bit memory_stalls_enabled();
    // One bit a channel: AR, R, AW, W, B.
    import "DPI-C" function byte unsigned memory_stalls();
    import "DPI-C" function void memory_read_request(
        input longint unsigned address, input int length, input int size, input int burst, input int port_bytes);
    // Returns 1 if a beat is due in this cycle.
    import "DPI-C" function bit memory_read_beat(
        output bit [PORT_BITS-1:0] data, output bit last, output byte unsigned response);
    import "DPI-C" function void memory_write_request(
        input longint unsigned address, input int length, input int size, input int burst, input int port_bytes);
    // Returns the cycles to wait before the next beat (bandwidth).
    import "DPI-C" function int memory_write_beat(
        input bit [PORT_BITS-1:0] data, input bit [PORT_BITS/8-1:0] strobe, input bit last);
    // Returns 1 if a response is due in this cycle.
    import "DPI-C" function bit memory_write_response(output byte unsigned response);

    bit stalling;
    byte unsigned stalls;
    initial stalling = memory_stalls_enabled();

    // Counted with blocking assignments, so that each decision of an edge sees the handshakes of the same edge.
    int reads, writes, write_beats, responses, write_wait;
    bit write_open;

    bit [PORT_BITS-1:0] beat_data;
    bit beat_last, beat_due;
    byte unsigned response;

    assign wready = write_open;

    always_ff @(posedge clk) begin
        if (!rst_n) begin
            {arready, rvalid, awready, write_open, bvalid} <= '0;
            reads = 0;
            writes = 0;
            write_beats = 0;
            responses = 0;
            write_wait = 0;
            stalls = 0;
        end else begin
            if (stalling) stalls = memory_stalls();

            // Reads
            if (rvalid && rready) begin
                rvalid <= 0;
                if (rlast) reads = reads - 1;
            end
            if (arvalid && arready) begin
                memory_read_request(araddr, int'(arlen), int'(arsize), int'(arburst), PORT_BITS / 8);
                reads = reads + 1;
            end
            if (reads != 0 && (!rvalid || rready) && !stalls[1]) begin
                beat_due = memory_read_beat(beat_data, beat_last, response);
                rvalid <= beat_due;
                rdata <= beat_data;
                rlast <= beat_last;
                rresp <= response[1:0];
            end
            arready <= reads < OUTSTANDING && !stalls[0];

            // Writes
            if (bvalid && bready) begin
                bvalid <= 0;
                writes = writes - 1;
            end
            if (write_wait != 0) write_wait = write_wait - 1;
            if (wvalid && wready) begin
                write_wait = memory_write_beat(wdata, wstrb, wlast);
                write_beats = write_beats - 1;
                if (wlast) responses = responses + 1;
            end
            if (awvalid && awready) begin
                memory_write_request(awaddr, int'(awlen), int'(awsize), int'(awburst), PORT_BITS / 8);
                writes = writes + 1;
                write_beats = write_beats + int'(awlen) + 1;
            end
            if (responses != 0 && (!bvalid || bready) && !stalls[4]) begin
                beat_due = memory_write_response(response);
                bvalid <= beat_due;
                bresp <= response[1:0];
                if (beat_due) responses = responses - 1;
            end
            awready <= writes < OUTSTANDING && !stalls[2];
            write_open <= write_beats != 0 && write_wait == 0 && !stalls[3];
        end
    end
endmodule
