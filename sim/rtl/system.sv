// The simulated system: the accelerator, the memory behind its AXI4 port and the master of its control port.

module redline_system #(
    parameter int PORT_BITS = 128,
    parameter int LANES = 16,
    parameter int VEC = 8
) (
    input  bit   ap_clk,
    input  bit   ap_rst_n,
    input  bit   control_go,    // each change runs the register script once
    output logic control_busy,
    output logic irq
);
    logic         s_awvalid, s_awready, s_wvalid, s_wready, s_bvalid, s_bready;
    logic         s_arvalid, s_arready, s_rvalid, s_rready;
    logic [7:0]   s_awaddr, s_araddr;
    logic [31:0]  s_wdata, s_rdata;
    logic [3:0]   s_wstrb;
    logic [1:0]   s_bresp, s_rresp;

    logic                   m_awvalid, m_awready, m_wvalid, m_wready, m_wlast, m_bvalid, m_bready;
    logic                   m_arvalid, m_arready, m_rvalid, m_rready, m_rlast;
    logic [63:0]            m_awaddr, m_araddr;
    logic [7:0]             m_awlen, m_arlen;
    logic [2:0]             m_awsize, m_arsize;
    logic [1:0]             m_awburst, m_arburst, m_bresp, m_rresp;
    logic [PORT_BITS-1:0]   m_wdata, m_rdata;
    logic [PORT_BITS/8-1:0] m_wstrb;

`ifdef REDLINE_PROBE
    logic                   probe_step_valid, probe_acc_valid, probe_requant_valid, probe_pool_valid;
    logic [VEC*8-1:0]       probe_step_features;
    logic [LANES*VEC*8-1:0] probe_step_weights;
    logic [LANES*32-1:0]    probe_acc;
    logic [LANES*8-1:0]     probe_requant, probe_pool;

    redline_probe #(.LANES(LANES), .VEC(VEC)) probe (.*);
`endif

    redline dut (
`ifdef REDLINE_PROBE
        .probe_step_valid, .probe_step_features, .probe_step_weights,
        .probe_acc_valid, .probe_acc,
        .probe_requant_valid, .probe_requant,
        .probe_pool_valid, .probe_pool,
`endif
        .ap_clk, .ap_rst_n, .interrupt(irq),
        .s_axi_control_awvalid(s_awvalid), .s_axi_control_awready(s_awready), .s_axi_control_awaddr(s_awaddr),
        .s_axi_control_wvalid(s_wvalid), .s_axi_control_wready(s_wready),
        .s_axi_control_wdata(s_wdata), .s_axi_control_wstrb(s_wstrb),
        .s_axi_control_bvalid(s_bvalid), .s_axi_control_bready(s_bready), .s_axi_control_bresp(s_bresp),
        .s_axi_control_arvalid(s_arvalid), .s_axi_control_arready(s_arready), .s_axi_control_araddr(s_araddr),
        .s_axi_control_rvalid(s_rvalid), .s_axi_control_rready(s_rready),
        .s_axi_control_rdata(s_rdata), .s_axi_control_rresp(s_rresp),
        .m_axi_gmem_awvalid(m_awvalid), .m_axi_gmem_awready(m_awready), .m_axi_gmem_awaddr(m_awaddr),
        .m_axi_gmem_awlen(m_awlen), .m_axi_gmem_awsize(m_awsize), .m_axi_gmem_awburst(m_awburst),
        .m_axi_gmem_wvalid(m_wvalid), .m_axi_gmem_wready(m_wready), .m_axi_gmem_wdata(m_wdata),
        .m_axi_gmem_wstrb(m_wstrb), .m_axi_gmem_wlast(m_wlast),
        .m_axi_gmem_bvalid(m_bvalid), .m_axi_gmem_bready(m_bready), .m_axi_gmem_bresp(m_bresp),
        .m_axi_gmem_arvalid(m_arvalid), .m_axi_gmem_arready(m_arready), .m_axi_gmem_araddr(m_araddr),
        .m_axi_gmem_arlen(m_arlen), .m_axi_gmem_arsize(m_arsize), .m_axi_gmem_arburst(m_arburst),
        .m_axi_gmem_rvalid(m_rvalid), .m_axi_gmem_rready(m_rready), .m_axi_gmem_rdata(m_rdata),
        .m_axi_gmem_rlast(m_rlast), .m_axi_gmem_rresp(m_rresp)
    );

    axi_memory #(.PORT_BITS(PORT_BITS)) memory (
        .clk(ap_clk), .rst_n(ap_rst_n),
        .awvalid(m_awvalid), .awready(m_awready), .awaddr(m_awaddr), .awlen(m_awlen), .awsize(m_awsize),
        .awburst(m_awburst), .wvalid(m_wvalid), .wready(m_wready), .wdata(m_wdata), .wstrb(m_wstrb), .wlast(m_wlast),
        .bvalid(m_bvalid), .bready(m_bready), .bresp(m_bresp),
        .arvalid(m_arvalid), .arready(m_arready), .araddr(m_araddr), .arlen(m_arlen), .arsize(m_arsize),
        .arburst(m_arburst), .rvalid(m_rvalid), .rready(m_rready), .rdata(m_rdata), .rlast(m_rlast), .rresp(m_rresp)
    );

    control_master control (
        .clk(ap_clk), .rst_n(ap_rst_n), .go(control_go), .busy(control_busy),
        .awvalid(s_awvalid), .awready(s_awready), .awaddr(s_awaddr),
        .wvalid(s_wvalid), .wready(s_wready), .wdata(s_wdata), .wstrb(s_wstrb),
        .bvalid(s_bvalid), .bready(s_bready), .bresp(s_bresp),
        .arvalid(s_arvalid), .arready(s_arready), .araddr(s_araddr),
        .rvalid(s_rvalid), .rready(s_rready), .rdata(s_rdata), .rresp(s_rresp)
    );
endmodule
