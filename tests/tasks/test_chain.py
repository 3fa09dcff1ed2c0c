def test_it(tiny_chain):
    for n, r in tiny_chain.results.items(): print(n, r["seconds"], r["counts"], r["fingerprint"])
    print(tiny_chain.open("evaluate","report.md").read_text())
