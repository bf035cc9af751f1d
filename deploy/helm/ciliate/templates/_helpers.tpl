{{/* Labels of everything; `component` is the process. Call with (dict "root" $ "component" "agent"). */}}
{{- define "ciliate.labels" -}}
{{ include "ciliate.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* What pods are selected by: never changes between versions. */}}
{{- define "ciliate.selector" -}}
app.kubernetes.io/name: ciliate-{{ .component }}
app.kubernetes.io/part-of: ciliate
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Name, place and labels of an object of one process. */}}
{{- define "ciliate.metadata" -}}
name: {{ .name | default (printf "ciliate-%s" .component) }}
{{- if not .clusterwide }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels: {{- include "ciliate.labels" . | nindent 2 }}
{{- end }}

{{- define "ciliate.image" -}}
image: {{ printf "%s/ciliate-%s:%s" .root.Values.image.repository .component (.root.Values.image.tag | default .root.Chart.AppVersion) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- end }}

{{/* Where pods outside of the pod network ask for the API server before its Service works. */}}
{{- define "ciliate.apiserver" -}}
{{- if .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | quote }}
{{- end }}
{{- end }}

{{/* Annotations of a pod: scraping, and a new roll-out when its configuration changes. */}}
{{- define "ciliate.annotations" -}}
checksum/config: {{ include (print .root.Template.BasePath "/" .component "/configmap.yaml") .root | sha256sum }}
{{- if .root.Values.prometheus.enabled }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
{{- end }}
{{- end }}

{{/* A container without any right. */}}
{{- define "ciliate.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Probes of the HTTP endpoint; call with the port. Starting may take long (a first compile, a cold etcd). */}}
{{- define "ciliate.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: {{ . }}, scheme: HTTP }
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: {{ . }}, scheme: HTTP }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: {{ . }}, scheme: HTTP }
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* Metrics and probes; kubelets ask on the pod's address, so it is not loopback even where nobody scrapes. */}}
{{- define "ciliate.metricsAddress" -}}
{{ printf "0.0.0.0:%d" (int .) }}
{{- end }}

{{/* A process's certificate, as its configuration names the files. */}}
{{- define "ciliate.tls" -}}
tls_ca: /etc/ciliate/tls/ca.crt
tls_cert: /etc/ciliate/tls/tls.crt
tls_key: /etc/ciliate/tls/tls.key
{{- end }}

{{/* Volumes and mounts of configuration and certificate. */}}
{{- define "ciliate.mounts" -}}
- name: config
  mountPath: /etc/ciliate/config
  readOnly: true
- name: tls
  mountPath: /etc/ciliate/tls
  readOnly: true
{{- end }}

{{- define "ciliate.volumes" -}}
- name: config
  configMap: { name: ciliate-{{ . }} }
- name: tls
  secret: { secretName: ciliate-{{ . }}-tls, defaultMode: 0440 }
{{- end }}

{{/* Scheduling of a process; call with (dict "root" $ "values" .Values.relay). */}}
{{- define "ciliate.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Replicas prefer different nodes. */}}
{{- define "ciliate.spread" -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "ciliate.selector" . | nindent 14 }}
{{- end }}

{{/* host:port of each member of etcd. */}}
{{- define "ciliate.etcdEndpoints" -}}
{{- if .Values.etcd.enabled }}
{{- $endpoints := list }}
{{- range .Values.etcd.members }}
{{- $endpoints = append $endpoints (include "ciliate.hostPort" (dict "host" . "port" $.Values.etcd.clientPort)) }}
{{- end }}
{{- toYaml $endpoints }}
{{- else }}
{{- toYaml .Values.etcd.endpoints }}
{{- end }}
{{- end }}

{{- define "ciliate.hostPort" -}}
{{ ternary (printf "[%s]:%d" .host (int .port)) (printf "%s:%d" .host (int .port)) (contains ":" .host) }}
{{- end }}

{{/* Values that a schema cannot judge. */}}
{{- define "ciliate.check" -}}
{{- if not (or .Values.ipv4.enabled .Values.ipv6.enabled) }}
{{- fail "ipv4.enabled, ipv6.enabled: at least one family is needed" }}
{{- end }}
{{- if and .Values.autoDirectNodeRoutes (ne .Values.routingMode "native") }}
{{- fail "autoDirectNodeRoutes: needs routingMode: native" }}
{{- end }}
{{- if .Values.etcd.enabled }}
{{- if not (has (len .Values.etcd.members) (list 1 3 5)) }}
{{- fail "etcd.members: name the addresses of 1, 3 or 5 nodes (an even number tolerates no more failures than one fewer), or set etcd.enabled=false and etcd.endpoints" }}
{{- end }}
{{- else if not .Values.etcd.endpoints }}
{{- fail "etcd.endpoints: name the members of your etcd as host:port, or set etcd.enabled" }}
{{- end }}
{{- end }}
