// Appends the accelerator's probe outputs to the trace file.

module redline_probe #(
    parameter int LANES = 16,
    parameter int VEC = 8
) (
    input bit                     ap_clk,
    input logic                   probe_step_valid,
    input logic [VEC*8-1:0]       probe_step_features,
    input logic [LANES*VEC*8-1:0] probe_step_weights,
    input logic                   probe_acc_valid,
    input logic [LANES*32-1:0]    probe_acc,
    input logic                   probe_requant_valid,
    input logic [LANES*8-1:0]     probe_requant,
    input logic                   probe_pool_valid,
    input logic [LANES*8-1:0]     probe_pool
);
    import "DPI-C" function void probe_step_record(
        input bit [VEC*8-1:0] features, input bit [LANES*VEC*8-1:0] weights, input int lanes, input int vec);
    import "DPI-C" function void probe_acc_record(input bit [LANES*32-1:0] acc, input int lanes);
    import "DPI-C" function void probe_requant_record(input bit [LANES*8-1:0] values, input int lanes);
    import "DPI-C" function void probe_pool_record(input bit [LANES*8-1:0] values, input int lanes);

    always_ff @(posedge ap_clk) begin
        if (probe_step_valid) probe_step_record(probe_step_features, probe_step_weights, LANES, VEC);
        if (probe_acc_valid) probe_acc_record(probe_acc, LANES);
        if (probe_requant_valid) probe_requant_record(probe_requant, LANES);
        if (probe_pool_valid) probe_pool_record(probe_pool, LANES);
    end
endmodule
