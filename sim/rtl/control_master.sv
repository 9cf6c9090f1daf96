// AXI4-Lite master that runs a script of register accesses, so that Python need not wake for each of them.

module control_master (
    input  bit           clk,
    input  bit           rst_n,
    input  bit           go,
    output logic         busy,
    output logic         awvalid,
    input  logic         awready,
    output logic [7:0]   awaddr,
    output logic         wvalid,
    input  logic         wready,
    output logic [31:0]  wdata,
    output logic [3:0]   wstrb,
    input  logic         bvalid,
    output logic         bready,
    input  logic [1:0]   bresp,
    output logic         arvalid,
    input  logic         arready,
    output logic [7:0]   araddr,
    input  logic         rvalid,
    output logic         rready,
    input  logic [31:0]  rdata,
    input  logic [1:0]   rresp
);
    // Returns the operation at `index` of the script (see sim/control.py), or 0 past its end.
    import "DPI-C" function int control_fetch(input int index, output int address, output int data);
    import "DPI-C" function void control_result(input int index, input int data, input int response);

    bit seen;
    int index, operation, address, data;

    assign wstrb = 4'hf;

    always_ff @(posedge clk) begin
        if (!rst_n) begin
            // A `go` set while in reset is not a request.
            seen <= go;
            busy <= 0;
            {awvalid, wvalid, bready, arvalid, rready} <= '0;
        end else if (!busy) begin
            if (go != seen) begin
                seen <= go;
                busy <= 1;
                index = 0;
            end
        end else if (bready || rready) begin
            if (awready) awvalid <= 0;
            if (wready) wvalid <= 0;
            if (arready) arvalid <= 0;
            if (bready && bvalid) begin
                control_result(index, int'(wdata), int'(bresp));
                index = index + 1;
                bready <= 0;
            end
            if (rready && rvalid) begin
                control_result(index, int'(rdata), int'(rresp));
                index = index + 1;
                rready <= 0;
            end
        end else begin
            operation = control_fetch(index, address, data);
            case (operation)
                1: begin
                    awvalid <= 1;
                    awaddr <= address[7:0];
                    wvalid <= 1;
                    wdata <= data;
                    bready <= 1;
                end
                2: begin
                    arvalid <= 1;
                    araddr <= address[7:0];
                    rready <= 1;
                end
                default: busy <= 0;
            endcase
        end
    end
endmodule
