"""Feature gates of Kubernetes 1.36 and 1.37: known names, those that matter here, and values.

All Kubernetes components share one set of names, and clusters often pass the same `featureGates` to
each of them. So kube-proxy knows, and nftproxy accepts, the gates of other components, too; they
have no effect here, and a warning says so. A name that no component knows is an error (contract
8.3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate with an effect on a service proxy.

    Stable ones are locked: they accept their own value only.
    """

    default: bool
    stage: Literal["alpha", "beta", "stable", "deprecated"]


GATES: Final[Mapping[str, Gate]] = {
    "AllAlpha": Gate(default=False, stage="alpha"),
    "AllBeta": Gate(default=False, stage="beta"),
    "AllowServiceExternalIPs": Gate(default=True, stage="deprecated"),
    "ComponentFlagz": Gate(default=True, stage="beta"),
    "ComponentStatusz": Gate(default=True, stage="beta"),
    "ContextualLogging": Gate(default=True, stage="beta"),
    "KubeProxyIPVS": Gate(default=True, stage="deprecated"),
    "KubeProxyNFTablesLocalhostNodePorts": Gate(default=False, stage="alpha"),
    "LoggingAlphaOptions": Gate(default=False, stage="alpha"),
    "LoggingBetaOptions": Gate(default=True, stage="beta"),
    "MultiCIDRServiceAllocator": Gate(default=True, stage="stable"),
    "NFTablesNetlink": Gate(default=True, stage="beta"),
    "NFTablesProxyMode": Gate(default=True, stage="stable"),
    "NativeHistograms": Gate(default=True, stage="beta"),
    "PreferSameTrafficDistribution": Gate(default=True, stage="stable"),
}

ELSEWHERE: Final = frozenset(
    """
    APIResponseCompression APIServerIdentity APIServerTracing APIServerWebhookAuthenticationToken
    APIServingWithRoutine AggregatedDiscoveryRemoveBetaType AllowDNSOnlyNodeCSR
    AllowInsecureKubeletCertificateSigningRequests AllowOverwriteTerminationGracePeriodSeconds
    AllowParsingUserUIDFromCertAuth AllowUnsafeMalformedObjectDeletion
    AnonymousAuthConfigurableEndpoints AnyVolumeDataSource AtomicFIFO AtomicWriteVolumeUserFields
    AuthorizeNodeWithSelectors AuthorizePodWebsocketUpgradeCreatePermission AuthorizeWithSelectors
    BtreeWatchCache CBORServingAndStorage CPUManagerPolicyAlphaOptions CPUManagerPolicyBetaOptions
    CPUManagerPolicyOptions CRDObservedGenerationTracking CRDValidationRatcheting CRIListStreaming
    CSIServiceAccountTokenSecrets CSIVolumeHealth ChangeContainerStatusOnKubeletRestart
    ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation ClientsAllowCBOR
    ClientsAllowTLSCacheGC ClientsPreferCBOR CloudControllerManagerWatchBasedRoutesReconciliation
    CloudControllerManagerWebhook ClusterTrustBundle ClusterTrustBundleProjection CompositePodGroup
    ConcurrentWatchObjectDecode ConsistentListFromCache ConsistentListFromCacheSkipTimeoutFallback
    ConstrainedImpersonation ContainerCheckpoint ContainerRestartRules ContainerStopSignals
    ControllerManagerReleaseLeaderElectionLockOnExit CoordinatedLeaderElection
    CrossNamespaceVolumeDataSource CustomCPUCFSQuotaPeriod CustomResourceFieldSelectors
    DRAAdminAccess DRAConsumableCapacity DRADerivedAttributes DRADeviceBindingConditions
    DRADeviceCompatibilityGroups DRADeviceTaintRules DRADeviceTaints DRAExtendedResource
    DRAListTypeAttributes DRANodeAllocatableResources DRAOptionalNodeOperations
    DRAPartitionableDevices DRAPartitionableDevicesType DRAPrioritizedList
    DRAResourceClaimDeviceStatus DRAResourceClaimGranularStatusAuthorization DRAResourcePoolStatus
    DRASchedulerFilterTimeout DRAWorkloadResourceClaims DeclarativeValidation
    DeclarativeValidationBeta DeclarativeValidationTakeover DefaultPodSysctls
    DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency DisableAllocatorDualWrite
    DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion DynamicResourceAllocation
    EmptyDirVolumeMode EnvFiles EtcdRangeStream EventedPLEG EvictionRequestAPI
    ExcludeAdmissionWebhookVirtualResources ExecProbeTimeout ExtendWebSocketsToKubelet
    ExternalServiceAccountTokenSigner GRPCContainerProbeTLS GangScheduling GenericWorkload
    GitRepoVolumeDriver GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority
    H2CContainerProbe HPAConfigurableTolerance HPAOptimizedSelectorStore HPAScaleToZero
    HonorPVReclaimPolicy HostnameOverride HugepageAwareEviction ImageMaximumGCAge ImageVolume
    ImageVolumeWithDigest InOrderInformers InOrderInformersBatchProcess
    InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScaling
    InPlacePodVerticalScalingAllocatedStatus InPlacePodVerticalScalingExclusiveCPUs
    InPlacePodVerticalScalingExclusiveMemory InPlacePodVerticalScalingInitContainers
    InPlacePodVerticalScalingMemoryBackedVolumes InPlacePodVerticalScalingSchedulerPreemption
    InformerResourceVersion InterPodAffinityHostnameFastPath JobBackoffLimitPerIndex JobManagedBy
    JobPodReplacementPolicy JobSuccessPolicy KMSv1 KubeletAllocatedPodsEndpoint
    KubeletCgroupDriverFromCRI KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages
    KubeletFineGrainedAuthz KubeletInUserNamespace KubeletPSI KubeletPodResourcesDynamicResources
    KubeletPodResourcesGet KubeletPodResourcesListUseActivePods KubeletRegistrationGetOnExistsOnly
    KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders KubeletTracing
    ListFromCacheSnapshot LocalStorageCapacityIsolationFSQuotaMonitoring LogarithmicScaleDown
    ManifestBasedAdmissionControlConfig MatchLabelKeysInPodAffinity
    MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge
    MaxUnavailableStatefulSet MemoryQoS MutableCSINodeAllocatableCount MutablePVNodeAffinity
    MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs
    MutatingAdmissionPolicy NodeControllerLeaseCircuitBreaker NodeDeclaredFeatures
    NodeInclusionPolicyInPodTopologySpread NodeLifecycleConditions NodeLogQuery NodeSwap
    NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching OrderedNamespaceDeletion
    PLEGOnDemandRelist PersistentVolumeClaimUnusedSinceTime PodAndContainerStatsFromCRI
    PodCertificateRequest PodDeletionCost PodGroupPreemptionPolicy PodLevelResourceManagers
    PodLevelResources PodLifecycleSleepAction PodLifecycleSleepActionAllowZero
    PodLogsQuerySplitStreams PodObservedGenerationTracking PodReadyToStartContainersCondition
    PodSchedulingReadiness PodTopologyLabelsAdmission PodsAPI PortForwardWebsockets
    PreventStaticPodAPIReferences ProcMountType QOSReserved RecoverVolumeExpansionFailure
    RecursiveReadOnlyMounts ReduceDefaultCrashLoopBackOffDecay RelaxedDNSSearchValidation
    RelaxedEnvironmentVariableValidation RelaxedServiceNameValidation ReloadKubeletClientCAFile
    ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResilientWatchCacheInitialization
    ResourceHealthStatus ResourceHealthStatusMessage RestartAllContainersOnContainerExits
    RetryGenerateName RotateKubeletServerCertificate RuntimeClassInImageCriApi SELinuxChangePolicy
    SELinuxMount SELinuxMountReadWriteOncePod SchedulerAsyncAPICalls SchedulerAsyncPreemption
    SchedulerPopFromBackoffQ SchedulerPreQueueingHints SchedulerQueueingHints SeparateCacheWatchRPC
    SeparateTaintEvictionController ServiceAccountNodeAudienceRestriction ServiceAccountTokenJTI
    ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation
    ServiceAccountTokenPodNodeInfo ServiceTrafficDistribution ShardedListAndWatch SidecarContainers
    SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet StaleControllerConsistencyHPA
    StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet
    StaleControllerConsistencyStatefulSet StatefulSetRecreateStrategy
    StatefulSetSemanticRevisionComparison StorageCapacityScoring StorageNamespaceIndex
    StorageVersionAPI StorageVersionHash StorageVersionMigrator StreamingCollectionEncodingToJSON
    StreamingCollectionEncodingToProtobuf StrictIPCIDRValidation
    StructuredAuthenticationConfiguration StructuredAuthenticationConfigurationEgressSelector
    StructuredAuthenticationConfigurationJWKSMetrics SupplementalGroupsPolicy SystemdWatchdog
    TaintTolerationComparisonOperators TokenRequestServiceAccountUIDValidation TopologyAwareHints
    TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions
    TopologyManagerPolicyBetaOptions TopologyManagerPolicyOptions
    TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation
    UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO UserNamespacesHostNetworkSupport
    UserNamespacesSupport VolumeAttributesClass VolumeBindMountOptions VolumeLimitScaling
    WatchCacheInitializationPostStartHook WatchList WatchListClient WatchListCompression
    WebhookRoundTripLoadBalancing WinDSR WinOverlay WindowsCPUAndMemoryAffinity
    WindowsGracefulNodeShutdown WindowsHostNetwork WorkloadAwarePreemption WorkloadWithJob
    """.split()  # noqa: SIM905 - a list literal would put 263 names on as many lines
)
"""Gates of other components.

Those that a 1.36 component lists in its help, the stable and deprecated ones that it hides there,
and those that are new in 1.37. What 1.37 has removed is still known, as the API server may be 1.36.
"""


def enabled(gates: Mapping[str, bool], name: str) -> bool:
    """Whether the gate `name` is on in a configuration.

    AllAlpha and AllBeta stand for gates not set.
    """
    gate = GATES[name]
    if name in gates or gate.stage not in ("alpha", "beta"):
        return gates.get(name, gate.default)
    collective = "AllAlpha" if gate.stage == "alpha" else "AllBeta"
    return gates.get(collective, gate.default)


def problems(gates: Mapping[str, bool]) -> list[str]:
    """Return the problems of the gates set, each with its field path (contract 8.3.1)."""
    found = []
    for name, value in gates.items():
        gate = GATES.get(name)
        if gate is None and name not in ELSEWHERE:
            found.append(f"featureGates.{name}: unknown feature gate")
        elif gate is not None and gate.stage == "stable" and value is not gate.default:
            found.append(f"featureGates.{name}: is locked to {str(gate.default).lower()}")
    return found


def warnings(gates: Mapping[str, bool]) -> list[str]:
    """Return a line that names the gates without effect here; empty without such gates."""
    foreign = [name for name in gates if name in ELSEWHERE]
    return (
        [f"featureGates: {', '.join(foreign)}: for other components; without effect here"]
        if foreign
        else []
    )
