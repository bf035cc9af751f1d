"""What leaves the relay for other systems: OpenTelemetry (OTLP over gRPC).

stored batches --offer--> bounded queue --Exporter--> LogsService    (flows as events)
registry ----------------- every interval ----------> MetricsService (everything that Prometheus would scrape)
"""
